// Package qemu runs machines as virtual machines (QEMU, with KVM where it works). A machine has the image as the backing file of its
// root disk, the seed as a CD-ROM, the data disk as a second disk, a network card whose cable is plugged into the cluster's
// network, and its serial port as console. Takes Linux and root.
//
// A machine is one process, which holds the cable: both go together.
package qemu
