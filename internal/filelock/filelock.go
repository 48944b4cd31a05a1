// Package filelock locks files on the build host, so that of several imagegens that want one result, one makes it. Images are built
// on Linux only, and so is this.
package filelock
