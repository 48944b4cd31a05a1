// Package builder runs the script that makes an image: in a root file system on this machine (chroot), or in a virtual machine
// (QEMU, VirtualBox). All builders are given the same job and make the same image of it. What the script does, and what is made of the
// result, others know.
package builder

import "time"

// Names are the ways of baking, the quickest first.
var Names = []string{"chroot", "qemu", "virtualbox"}

// Limit is how long a bake in a VM may take unless the configuration says otherwise. An emulated one takes minutes.
const Limit = time.Hour
