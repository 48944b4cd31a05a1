// Package nspawn runs machines as system containers (systemd-nspawn): on the root file system in the image, with what the machine has
// changed laid over it (overlayfs), and with the files of the seed where cloud-init looks for them. Takes Linux and root.
//
// A machine's mounts and its network card are in namespaces of its own, and its loop devices detach themselves, so the kernel
// removes all of them with the machine's last process.
package nspawn
