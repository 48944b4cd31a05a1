// Package uuid derives UUIDs from names, so that the same inputs make the same files.
package uuid

import (
	"crypto/sha256"
	"fmt"
	"strings"
)

// Of returns the UUID of what the parts name: version 8 (custom) of RFC 9562.
func Of(parts ...string) string {
	u := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	u[6] = u[6]&0x0f | 0x80
	u[8] = u[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:16])
}
