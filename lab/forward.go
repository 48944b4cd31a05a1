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
// args, in the network namespace of this process. A second address is for those who speak TLS: a running cluster may get HTTPS, or lose
// it. It ends only with an error.
func RunForward(args []string) error {
	if len(args) != 1 && len(args) != 2 {
		return errors.New("for the lab's own use: " + ForwardCommand + " ADDRESS:PORT [ADDRESS:PORT], with a listening socket as file descriptor 3")
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
		go forward(conn.(*net.TCPConn), args...)
	}
}

// tlsHandshake is the first byte of a connection on which a client speaks TLS (RFC 8446, 5.1). No HTTP request begins with it.
const tlsHandshake = 22

// forward connects a visitor to the first target, or to the second one, if there is one and the visitor speaks TLS. It copies both ways until
// both sides have closed. If the target cannot be reached, the visitor's connection is closed.
func forward(visitor *net.TCPConn, targets ...string) {
	defer visitor.Close()
	target, first := targets[0], make([]byte, len(targets)-1)
	if _, err := io.ReadFull(visitor, first); err != nil {
		return
	}
	if len(first) > 0 && first[0] == tlsHandshake {
		target = targets[1]
	}
	conn, err := net.DialTimeout("tcp", target, dialLimit)
	if err != nil {
		return
	}
	site := conn.(*net.TCPConn)
	defer site.Close()
	if _, err := site.Write(first); err != nil {
		return
	}
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
