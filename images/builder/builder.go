// Package builder runs the script that makes an image: in a chroot on this machine, or in a virtual machine of QEMU or VirtualBox. All
// builders take the same job and produce the same image. The package does not know what the script does; package images/distro does.
package builder

import "time"

// Names lists the builders, the fastest first.
var Names = []string{"chroot", "qemu", "virtualbox"}

// Limit is the default time limit for a bake in a VM. An emulated one takes minutes.
const Limit = time.Hour
