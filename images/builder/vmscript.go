package builder

import _ "embed"

// VMScript is run in a VM by cloud-init. It is part of the identity of images whose base is a disk, in which it leaves traces.
//
//go:embed scripts/vm.sh
var VMScript string
