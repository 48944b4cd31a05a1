package operate

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// The test program stands for ssh where that is called with -W.
func TestMain(m *testing.M) {
	if os.Getenv("OPERATE_TEST_SSH") != "" {
		os.Exit(fakeSSH(os.Args[1:]))
	}
	os.Exit(m.Run())
}

// fakeSSH carries a connection as ssh -W does, to OPERATE_TEST_SSH whatever the address.
func fakeSSH(args []string) int {
	i := slices.Index(args, "-W")
	if i < 0 || args[len(args)-2] != "--" {
		fmt.Fprintf(os.Stderr, "usage: %q\n", args)
		return 255
	}
	if args[len(args)-1] == "nowhere" {
		fmt.Fprintln(os.Stderr, "Warning: something\nssh: Could not resolve hostname nowhere")
		return 255
	}
	conn, err := net.Dial("tcp", os.Getenv("OPERATE_TEST_SSH"))
	if err != nil {
		return 255
	}
	fmt.Fprintln(os.Stderr, args[i+1])
	go func() {
		io.Copy(conn, os.Stdin)
		conn.(*net.TCPConn).CloseWrite()
	}()
	io.Copy(os.Stdout, conn)
	return 0
}

// Agents are asked through ssh -W, no more at once than an SSH server takes, and what ssh says is the error.
func TestVia(t *testing.T) {
	f := newFakes(t, 12)
	bin := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(self, filepath.Join(bin, "ssh")); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin)
	t.Setenv("OPERATE_TEST_SSH", f.addr)
	via := func(host string) *Cluster {
		t.Helper()
		dial, err := Via(host)
		if err != nil {
			t.Fatal(err)
		}
		agents, err := NewAgents(f.keys, dial)
		if err != nil {
			t.Fatal(err)
		}
		agents.Limit, agents.AtOnce = time.Minute, ViaAtOnce
		return &Cluster{Spec: f.spec, Agents: agents}
	}
	nodes, err := via("jump").Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes {
		if !n.Ready() {
			t.Errorf("%+v", n)
		}
	}
	if _, err := via("nowhere").Status(t.Context()); err == nil || !strings.Contains(err.Error(), "ssh nowhere: ssh: Could not resolve hostname nowhere") {
		t.Errorf("%v", err)
	}
	for _, host := range []string{"", "-oProxyCommand=x"} {
		if _, err := Via(host); err == nil {
			t.Errorf("ssh is called with %q", host)
		}
	}
	t.Setenv("PATH", t.TempDir())
	if _, err := Via("jump"); err == nil || !strings.Contains(err.Error(), "openssh-client") {
		t.Errorf("without ssh: %v", err)
	}
}
