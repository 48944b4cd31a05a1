package e2e

import (
	"bytes"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// needles are the secrets to search for, by name.
type needles map[string][]byte

// secrets returns every password and private key of the cluster.
func (b *bench) secrets(t *testing.T) needles {
	t.Helper()
	all := needles{}
	err := filepath.WalkDir(filepath.Join(b.dir, "secrets"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		switch {
		case d.Name() == "passwords.json":
			var passwords map[string]string
			if err := json.Unmarshal(data, &passwords); err != nil {
				return err
			}
			for name, p := range passwords {
				all[name] = []byte(p)
			}
		case strings.HasSuffix(d.Name(), ".key"), d.Name() == "site.pem":
			_, key, is := bytes.Cut(data, []byte("PRIVATE KEY-----\n"))
			if block, _ := pem.Decode(data); block == nil || !is {
				return errors.New(path + " is not a PEM file with a key")
			}
			all[d.Name()] = bytes.Split(key, []byte("\n"))[0] // the first line of the key itself
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 20 {
		t.Fatalf("only %d secrets found", len(all))
	}
	return all
}

// find returns the names of the secrets that r contains.
func (n needles) find(r io.Reader) ([]string, error) {
	// A table of the first two bytes reduces the common case, no match, to one lookup per byte.
	var first [1 << 16]bool
	longest := 0
	for _, s := range n {
		first[int(s[0])<<8|int(s[1])] = true
		longest = max(longest, len(s))
	}
	var found []string
	buf := make([]byte, 0, 4<<20)
	for {
		m, err := r.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+m]
		for i := 0; i+1 < len(buf); i++ {
			if !first[int(buf[i])<<8|int(buf[i+1])] {
				continue
			}
			for name, s := range n {
				if bytes.HasPrefix(buf[i:], s) && !slices.Contains(found, name) {
					found = append(found, name)
				}
			}
		}
		keep := min(len(buf), longest-1) // a secret may span two reads
		copy(buf, buf[len(buf)-keep:])
		buf = buf[:keep]
		if err == io.EOF {
			return found, nil
		}
		if err != nil {
			return found, err
		}
	}
}

// data reads the data of a sparse file without its holes.
type data struct {
	f    *os.File
	pos  int64
	rest int64 // of the current extent
}

func (d *data) Read(p []byte) (int, error) {
	if d.rest == 0 {
		const seekData, seekHole = 3, 4 // lseek(2)
		start, err := d.f.Seek(d.pos, seekData)
		if errors.Is(err, syscall.ENXIO) {
			return 0, io.EOF
		}
		if err != nil {
			return 0, err
		}
		end, err := d.f.Seek(start, seekHole)
		if err != nil {
			return 0, err
		}
		if _, err := d.f.Seek(start, io.SeekStart); err != nil {
			return 0, err
		}
		d.pos, d.rest = end, end-start
	}
	n, err := d.f.Read(p[:min(int64(len(p)), d.rest)])
	d.rest -= int64(n)
	return n, err
}

// noSecretLeaks searches for every secret where none may be: images, command output, consoles, logs, the process list.
func (b *bench) noSecretLeaks(t *testing.T) {
	secrets := b.secrets(t)
	report := func(where string, r io.Reader) {
		found, err := secrets.find(r)
		if err != nil {
			t.Errorf("%s: %v", where, err)
		}
		if len(found) > 0 {
			t.Errorf("%s holds secrets: %s", where, strings.Join(found, ", "))
		}
	}
	// Check that the search finds a secret.
	if found, _ := secrets.find(strings.NewReader("password=" + b.secret(t, "redis") + "\n")); len(found) != 1 {
		t.Fatalf("the search does not work: found %v", found)
	}

	for pid, cmdline := range processes() {
		report("the command line of process "+pid, strings.NewReader(cmdline))
	}
	b.mu.Lock()
	report("what imagegen printed", bytes.NewReader(b.output.Bytes()))
	b.mu.Unlock()

	images, _ := filepath.Glob(filepath.Join(b.dist(), "images", "*"))
	if len(images) == 0 {
		t.Error("no images")
	}
	for _, image := range images {
		f, err := os.Open(image)
		if err != nil {
			t.Fatal(err)
		}
		report(image, &data{f: f})
		f.Close()
	}
	consoles, _ := filepath.Glob(filepath.Join(b.dist(), "lab", "nodes", "*", "console.log"))
	if len(consoles) != 17 {
		t.Errorf("%d consoles", len(consoles))
	}
	for _, c := range consoles {
		f, err := os.Open(c)
		if err != nil {
			t.Fatal(err)
		}
		report(c, f)
		f.Close()
	}
	for _, n := range b.nodes(t) {
		logs, err := b.in(n.Node, "journalctl --no-pager -o cat -a; find /var/log -type f -print0 | xargs -0 cat")
		if err != nil {
			t.Error(err)
		}
		report("the logs of "+n.Node, strings.NewReader(logs))
		// The output of exec is the command's, not imagegen's.
		b.mu.Lock()
		b.output.Reset()
		b.mu.Unlock()
	}
}
