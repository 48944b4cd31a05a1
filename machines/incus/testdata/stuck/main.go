// Stuck starts a process that cannot freeze: it mounts a FUSE file system that answers only the first request (FUSE_INIT, see
// linux/fuse.h), and has stat wait for a file in it.
package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"syscall"
	"time"
)

func main() {
	if err := wait("/tmp"); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

func wait(dir string) error {
	fd, err := syscall.Open("/dev/fuse", syscall.O_RDWR|syscall.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open /dev/fuse: %w", err)
	}
	if err := syscall.Mount("stuck", dir, "fuse", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fd)); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	// A process of its own: a thread that waits would keep the FUSE server's files open.
	if _, err := os.StartProcess("/bin/busybox", []string{"stat", dir + "/file"}, &os.ProcAttr{}); err != nil {
		return err
	}
	request := make([]byte, 1<<17)
	if _, err := syscall.Read(fd, request); err != nil {
		return fmt.Errorf("read the first request: %w", err)
	}
	const headerSize, initSize = 16, 64
	answer := make([]byte, headerSize+initSize)
	order := binary.NativeEndian
	order.PutUint32(answer, uint32(len(answer)))
	copy(answer[8:16], request[8:16])       // the request's number
	order.PutUint32(answer[headerSize:], 7) // major and minor version
	order.PutUint32(answer[headerSize+4:], 31)
	order.PutUint32(answer[headerSize+20:], 4096) // max_write
	if _, err := syscall.Write(fd, answer); err != nil {
		return fmt.Errorf("answer the first request: %w", err)
	}
	if _, err := syscall.Read(fd, request); err != nil {
		return fmt.Errorf("read the second request: %w", err)
	}
	fmt.Println("a request waits")
	time.Sleep(time.Hour)
	return nil
}
