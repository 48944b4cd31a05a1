// Package filelock locks files, so that only one of several imagegens makes a result. It works on Linux only, where images are built. Locks
// may be shared, and a waiting process is woken by the kernel. Where other systems must be supported, package exclusive is used, which has
// only exclusive locks and polls.
package filelock
