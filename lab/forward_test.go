package lab

import (
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
)

// TestForward connects visitors through forward to a server on the loopback interface.
func TestForward(t *testing.T) {
	site, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	front, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer front.Close()
	go func() {
		for {
			c, err := front.Accept()
			if err != nil {
				return
			}
			go forward(c.(*net.TCPConn), site.Addr().String())
		}
	}()
	visit := func() *net.TCPConn {
		c, err := net.Dial("tcp", front.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		return c.(*net.TCPConn)
	}

	// The visitor has sent everything before the site answers.
	go func() {
		c, err := site.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		question, _ := io.ReadAll(c)
		c.Write(append([]byte("you said: "), question...))
	}()
	c := visit()
	io.WriteString(c, "hello")
	c.CloseWrite()
	if answer, err := io.ReadAll(c); string(answer) != "you said: hello" || err != nil {
		t.Errorf("%q, %v", answer, err)
	}

	// Nothing listens at the site's address.
	site.Close()
	c = visit()
	if answer, err := io.ReadAll(c); len(answer) > 0 || err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("from a site that is not there: %q, %v", answer, err)
	}
}
