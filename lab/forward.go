package lab

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// ForwardCommand is the hidden command of imagegen that the lab starts in the background. It must call RunForward with the
// arguments that follow it.
const ForwardCommand = "lab-forward"

const dialLimit = 5 * time.Second

// RunForward accepts connections on the listening socket that it inherits as file descriptor 3, and connects each to the address in
// args, in the network namespace of this process. It ends only with an error.
func RunForward(args []string) error {
	if len(args) != 1 {
		return errors.New("for the lab's own use: " + ForwardCommand + " ADDRESS:PORT, with a listening socket as file descriptor 3")
	}
	l, err := net.FileListener(os.NewFile(3, "listener"))
	if err != nil {
		return fmt.Errorf("forward the site: %w", err)
	}
	for {
		conn, err := l.Accept()
		if err != nil {
			return fmt.Errorf("forward the site: %w", err)
		}
		go forward(conn.(*net.TCPConn), args[0])
	}
}

// forward copies both ways until both sides have closed. If the site cannot be reached, the visitor's connection is closed.
func forward(visitor *net.TCPConn, target string) {
	defer visitor.Close()
	conn, err := net.DialTimeout("tcp", target, dialLimit)
	if err != nil {
		return
	}
	site := conn.(*net.TCPConn)
	defer site.Close()
	var both sync.WaitGroup
	for _, c := range [][2]*net.TCPConn{{site, visitor}, {visitor, site}} {
		both.Go(func() {
			if _, err := io.Copy(c[0], c[1]); err != nil { // one side is gone: the other need not wait
				visitor.Close()
				site.Close()
			}
			c[0].CloseWrite()
		})
	}
	both.Wait()
}
