//go:build linux

package qemu

import (
	"testing"

	"imagegen/machines/local/localtest"
)

func TestConformance(t *testing.T) {
	localtest.Run(t, New, [2]localtest.Image{localtest.VM(t, "first"), localtest.VM(t, "second")})
}
