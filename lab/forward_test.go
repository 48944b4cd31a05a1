package lab

import (
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
)

// TestForward connects visitors through forward to servers on the loopback interface.
func TestForward(t *testing.T) {
	listen := func() net.Listener {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		return l
	}
	front, plain, secure := listen(), listen(), listen()
	go func() {
		for {
			c, err := front.Accept()
			if err != nil {
				return
			}
			go forward(c.(*net.TCPConn), plain.Addr().String(), secure.Addr().String())
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
	for name, site := range map[string]net.Listener{"plain": plain, "secure": secure} {
		go func() {
			for {
				c, err := site.Accept()
				if err != nil {
					return
				}
				question, _ := io.ReadAll(c)
				c.Write(append([]byte(name+", you said: "), question...))
				c.Close()
			}
		}()
	}
	for question, want := range map[string]string{
		"hello":                       "plain, you said: hello",
		"h":                           "plain, you said: h",
		"\x16\x03\x01 is a handshake": "secure, you said: \x16\x03\x01 is a handshake",
		"":                            "",
	} {
		c := visit()
		io.WriteString(c, question)
		c.CloseWrite()
		if answer, err := io.ReadAll(c); string(answer) != want || err != nil {
			t.Errorf("%q: %q, %v", question, answer, err)
		}
	}

	// Nothing listens at the site's address.
	plain.Close()
	c := visit()
	io.WriteString(c, "hello")
	if answer, err := io.ReadAll(c); len(answer) > 0 || err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("from a site that is not there: %q, %v", answer, err)
	}
}
