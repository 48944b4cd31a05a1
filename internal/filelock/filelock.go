// Package filelock locks files, so that only one of several imagegens makes a result. It works on Linux only, where images are built.
package filelock
