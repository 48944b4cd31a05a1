package exec

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"

	"imagegen/internal/atomicfile"
)

// record is a file with the host of each node. Without a path it stores nothing.
type record struct {
	path string
	mu   sync.Mutex
}

// read returns the host of each node.
func (r *record) read() (map[string]string, error) {
	placed := map[string]string{}
	if r.path == "" {
		return placed, nil
	}
	data, err := os.ReadFile(r.path)
	if errors.Is(err, fs.ErrNotExist) {
		return placed, nil
	}
	if err != nil {
		return nil, fmt.Errorf("where machines were placed: %w", err)
	}
	if err := json.Unmarshal(data, &placed); err != nil {
		return nil, fmt.Errorf("where machines were placed: %s: %w: remove the file, the next machine makes a new one", r.path, err)
	}
	return placed, nil
}

func (r *record) set(node, host string) error {
	return r.change(func(placed map[string]string) bool {
		same := placed[node] == host
		placed[node] = host
		return !same
	})
}

func (r *record) forget(node string) error {
	return r.change(func(placed map[string]string) bool {
		_, is := placed[node]
		delete(placed, node)
		return is
	})
}

// change applies a change and writes the file if it returns true.
func (r *record) change(change func(map[string]string) bool) error {
	if r.path == "" {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	placed, err := r.read()
	if err != nil {
		return err
	}
	if !change(placed) {
		return nil
	}
	if len(placed) == 0 {
		return os.Remove(r.path)
	}
	data, err := json.MarshalIndent(placed, "", "  ")
	if err != nil {
		return err
	}
	return atomicfile.Write(r.path, append(data, '\n'), 0o644)
}
