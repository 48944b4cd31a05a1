package cluster

import (
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"

	"imagegen/internal/words"
)

// Binary units.
const (
	KiB Bytes = 1 << 10
	MiB Bytes = 1 << 20
	GiB Bytes = 1 << 30
	TiB Bytes = 1 << 40
)

var units = []struct {
	name string
	size Bytes
}{{"TiB", TiB}, {"GiB", GiB}, {"MiB", MiB}, {"KiB", KiB}}

// String formats a size as in a spec, with the largest unit that gives a whole number: 512MiB, 10GiB.
func (b Bytes) String() string {
	for _, u := range units {
		if b != 0 && b%u.size == 0 {
			return strconv.FormatInt(int64(b/u.size), 10) + u.name
		}
	}
	return strconv.FormatInt(int64(b), 10)
}

var sizeForm = regexp.MustCompile(`^([0-9]+)(\.[0-9]+)?\s*([A-Za-z]*)$`)

// ParseBytes parses a size: a whole number directly followed by KiB, MiB, GiB or TiB. The error suggests a correction.
func ParseBytes(text string) (Bytes, error) {
	m := sizeForm.FindStringSubmatch(text)
	if m == nil {
		return 0, fmt.Errorf("%s is not a size; write a whole number and a unit, such as 512MiB or 10GiB", words.Quote(text))
	}
	number, fraction, unit := m[1], m[2], m[3]
	if unit == "" {
		return 0, fmt.Errorf("%s has no unit; write %sMiB or %sGiB", words.Quote(text), number, number)
	}
	for _, u := range units {
		// For MB, M, mib and the like the intended unit is clear, but whether it is decimal or binary is not.
		if unit != u.name && !strings.EqualFold(unit, u.name) && !strings.EqualFold(unit, u.name[:1]+"B") && !strings.EqualFold(unit, u.name[:1]) {
			continue
		}
		switch n, err := strconv.ParseInt(number, 10, 64); {
		case fraction != "":
			return 0, fmt.Errorf("%s is not a whole number; write it in a smaller unit, such as 1536MiB for one and a half GiB", words.Quote(text))
		case err != nil || n > math.MaxInt64/int64(u.size):
			return 0, fmt.Errorf("%s is more than any disk holds", words.Quote(text))
		case text != number+u.name:
			return 0, fmt.Errorf("%s is not written as a size; write %d%s", words.Quote(text), n, u.name)
		case n == 0:
			return 0, fmt.Errorf("%s is zero; write a size such as 512MiB", words.Quote(text))
		case number[0] == '0':
			return 0, fmt.Errorf("%s has leading zeros; write %d%s", words.Quote(text), n, u.name)
		default:
			return Bytes(n) * u.size, nil
		}
	}
	return 0, fmt.Errorf("%s has an unknown unit; it may be KiB, MiB, GiB or TiB, as in 512MiB", words.Quote(text))
}
