package agent

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"imagegen/cluster/facts"
	"imagegen/internal/testkit"
	"imagegen/internal/xattr"
)

// brickWith makes a brick with files in it, as GlusterFS keeps them.
func brickWith(t *testing.T) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: needs root, for trusted attributes")
	}
	for _, tool := range []string{"setfattr", "getfattr", "perl"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("SKIPPED: needs %s (apt-get install attr perl-base)", tool)
		}
	}
	brick := filepath.Join(t.TempDir(), "gv0")
	if err := os.MkdirAll(brick, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Setxattr(brick, "trusted.gfid", make([]byte, 16), 0); errors.Is(err, syscall.ENOTSUP) || errors.Is(err, syscall.EPERM) {
		t.Skipf("SKIPPED: needs a file system with trusted attributes, and the right to set them: %v", err)
	}
	sh(t, `cd $1; mkdir -p .glusterfs/indices/xattrop a/b; touch .glusterfs/indices/xattrop/x; echo 1 >a/b/f; ln a/b/f hard; ln -s a/b/f link; ln -s nowhere dangling; mkfifo pipe; chmod 4711 a/b/f; chown 5:6 a/b
n=0; find . -path ./.glusterfs -prune -o ! -path . -print | sort | while read -r f; do n=$((n + 1)); [ $f != ./hard ] || continue
setfattr -h -n trusted.gfid -v 0x$(printf ab%02x%028x $n $n) $f; setfattr -h -n trusted.afr.gv0-client-1 -v 0x000000010000000000000000 $f; done
setfattr -n trusted.glusterfs.volume-id -v 0x11111111111111111111111111111111 .; setfattr -n user.note -v yes a/b/f`, brick)
	return brick
}

// copyOf copies a brick from one agent to that of another node, over TLS.
func copyOf(t *testing.T, brick string, as facts.Peer) (copied string, err error) {
	t.Helper()
	ca := newAuthority(t)
	later := time.Now().Add(time.Hour)
	one := makeGluster(Node{Log: t.Logf}, nil, &glusterUnit{node: Node{Log: t.Logf}, params: &facts.GlusterParams{Brick: brick}})
	a := testAgent(func(string) {}, component("gluster", nil, one))
	a.facts.Node.Role = "glusterfs"
	a.facts.Peers = []facts.Peer{as}
	host, text, err := net.SplitHostPort(serveAPI(t, a.apiHandler(), ca.issue(t, "web1", later)))
	if err != nil {
		t.Fatal(err)
	}
	port, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	blank := filepath.Join(t.TempDir(), "gv0")
	u := &glusterUnit{node: Node{Log: t.Logf}, params: &facts.GlusterParams{Brick: blank}, fetch: func(ctx context.Context, from facts.Peer) (io.ReadCloser, error) {
		return fetchBrick(ctx, ca.issue(t, as.Name, later), from, port)
	}}
	if err := u.do(t.Context(), glusterStep{do: glusterCopy, from: facts.Peer{Name: "web1", IP: host}}); err != nil {
		t.Fatal(err)
	}
	testkit.Until(t, time.Minute, "the copy ends", func() bool { return u.copy.state() != copyRuns })
	if u.copy.err != nil {
		if _, err := os.Lstat(copyDir(blank)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("a copy that failed is left: %v", err)
		}
		return "", u.copy.err
	}
	u.seen.Volume = &glusterVolume{ID: "22222222-2222-2222-2222-222222222222"}
	return blank, u.do(t.Context(), glusterStep{do: glusterRestore})
}

var gluster2 = facts.Peer{Name: "glusterfs2", Role: "glusterfs"}

func TestCopyBrick(t *testing.T) {
	brick, bin := brickWith(t), t.TempDir()
	// A folder goes while find reads it: that fails nothing.
	sh(t, `printf '#!/bin/sh\n%s "$@"; exit 1' $(command -v find) >$1/find; chmod 755 $1/find`, bin)
	path := os.Getenv("PATH")
	t.Setenv("PATH", bin+":"+path)
	blank, err := copyOf(t, brick, gluster2)
	t.Setenv("PATH", path)
	if err != nil {
		t.Fatal(err)
	}
	const list = `cd $1; find . -path ./.glusterfs -prune -o ! -path . -printf '%p %y %U %G %m %s %l\n' | sort; cat a/b/f; find . -path ./.glusterfs -prune -o ! -path . -print | sort | xargs getfattr -h -e hex -d -m '^(trusted.gfid|user)'`
	if got, want := sh(t, list, blank), sh(t, list, brick); got != want {
		t.Errorf("the copy has\n%s\ninstead of\n%s", got, want)
	}
	sh(t, `mkdir -p $1/.glusterfs/00/00; ln -s ../../.. $1/.glusterfs/00/00/$2`, blank, rootGFID) // as the brick's process does
	for _, path := range []string{"dangling", "link", "pipe", "a/b/f", "a", "a/b"} {
		b := make([]byte, 16)
		if _, err := xattr.Lget(filepath.Join(blank, path), "trusted.gfid", b); err != nil {
			t.Fatal(err)
		}
		gfid := uuidText(b)
		named, err := os.Lstat(filepath.Join(blank, path))
		if err != nil {
			t.Fatal(err)
		}
		// A folder's own name is a symbolic link to it.
		own, err := os.Lstat(filepath.Join(blank, ".glusterfs", gfid[:2], gfid[2:4], gfid) + map[bool]string{true: "/."}[named.IsDir()])
		if err != nil || !os.SameFile(named, own) {
			t.Errorf("%s has no name of GlusterFS' own: %v", path, err)
		}
		if n, err := xattr.Lget(filepath.Join(blank, path), "trusted.afr.gv0-client-1", b); !errors.Is(err, syscall.ENODATA) {
			t.Errorf("%s: what another brick lacks was copied: %d, %v", path, n, err)
		}
	}
	if _, err := os.Lstat(filepath.Join(blank, ".glusterfs/indices")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("GlusterFS' own files were copied: %v", err)
	}
	id := make([]byte, 16)
	if _, err := syscall.Getxattr(blank, volumeIDXattr, id); err != nil || uuidText(id) != "22222222-2222-2222-2222-222222222222" {
		t.Errorf("volume %s, %v", uuidText(id), err)
	}
}

func TestCopyBrickFails(t *testing.T) {
	for name, c := range map[string]struct {
		as     facts.Peer
		change string
		want   string
	}{
		"another role":                 {facts.Peer{Name: "backend1", Role: "backend"}, ":", "only other nodes of role glusterfs may do this, not backend1"},
		"a socket":                     {gluster2, `perl -MIO::Socket::UNIX -e 'IO::Socket::UNIX->new(Local => "$ARGV[0]/a/s", Listen => 1) or die' $1`, "a/s is a socket, which cannot be sent"},
		"a file without gfid":          {gluster2, "touch $1/a/new", "read its gfid"},
		"a folder that is there twice": {gluster2, "cp -a $1/a $1/z; rm -r $1/z/b; setfattr -n trusted.gfid -v $(getfattr --only-values -n trusted.gfid $1/a | od -An -tx1 | tr -d ' \\n' | sed 's/^/0x/') $1/z", "file exists"},
		"two files of one gfid":        {gluster2, "cp $1/a/b/f $1/z; setfattr -n trusted.gfid -v $(getfattr --only-values -n trusted.gfid $1/a/b/f | od -An -tx1 | tr -d ' \\n' | sed 's/^/0x/') $1/z", "another file has its gfid"},
		"tar fails":                    {gluster2, `printf '#!/bin/sh\ncase $1 in --create) %s "$@"; exit 2;; esac; exec %s "$@"' $(command -v tar) $(command -v tar) >$2/tar; chmod 755 $2/tar`, "EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			brick, bin := brickWith(t), t.TempDir()
			sh(t, c.change, brick, bin)
			t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
			if _, err := copyOf(t, brick, c.as); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v", err)
			}
		})
	}
}

// A copy ends with the agent.
func TestCopyBrickEnds(t *testing.T) {
	r, w := io.Pipe()
	defer w.Close()
	u := &glusterUnit{node: Node{Log: t.Logf}, params: &facts.GlusterParams{Brick: filepath.Join(t.TempDir(), "gv0")},
		fetch: func(ctx context.Context, _ facts.Peer) (io.ReadCloser, error) {
			context.AfterFunc(ctx, func() { r.CloseWithError(ctx.Err()) }) // as with a connection
			return r, nil
		}}
	if err := u.do(t.Context(), glusterStep{do: glusterCopy}); err != nil {
		t.Fatal(err)
	}
	runs := func() bool {
		lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
		return slices.ContainsFunc(lines, func(path string) bool {
			line, _ := os.ReadFile(path) // it may have ended
			return strings.HasPrefix(string(line), "tar\x00") && strings.Contains(string(line), copyDir(u.params.Brick))
		})
	}
	testkit.Until(t, time.Minute, "tar runs", runs)
	u.close()
	if runs() {
		t.Error("tar still runs")
	}
}
