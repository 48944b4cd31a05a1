//go:build linux

package nspawn

import (
	"os"
	"testing"

	"imagegen/machines/local/localtest"
)

func TestMain(m *testing.M) {
	localtest.Init()
	os.Exit(m.Run())
}

func TestConformance(t *testing.T) {
	localtest.Run(t, New, [2]localtest.Image{localtest.Container(t, "first"), localtest.Container(t, "second")})
}
