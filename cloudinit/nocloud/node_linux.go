package nocloud

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// reminder is how often a node that waits for its first seed says so.
const reminder = time.Minute

// Check runs before cloud-init at every boot; after an error, cloud-init does not run. It keeps an attached seed that
// is new and for this node, and shows cloud-init only the kept one. A disk that has never had a seed waits for one. say
// reports to the console.
func (d Disk) Check(ctx context.Context, say func(string)) error {
	kept, err := d.Kept()
	if err != nil {
		if kept == nil {
			return err // the disk's identity is unknown, so no seed may be applied
		}
		say(fmt.Sprintf("the node's copy of its seed is %v: attach the seed of node %s and reboot", err, kept.Node))
	}
	damaged := err != nil
	// The same seed replaces a damaged copy.
	same := kept
	if damaged {
		same = &Identity{Cluster: kept.Cluster, Node: kept.Node, Number: kept.Number, Generation: kept.Generation}
	}
	found := d.Find()
	if len(found) == 0 || kept == nil { // drivers may not have found all devices yet
		settle(ctx)
		found = d.Find()
	}
	take, notes := Choose(same, found)
	for _, n := range notes {
		say(n)
	}
	if kept == nil && take == nil {
		if take, err = waitForSeed(ctx, d.Find, notes, time.Second, reminder, say); err != nil {
			return err
		}
	}
	if take != nil {
		err := d.Keep(take.Seed)
		switch {
		case err == nil:
			kept, damaged = &take.ID, false
			said := fmt.Sprintf("new seed on %s: this is node %s, instance %s", take.Where, kept.Node, kept.Instance)
			if kept.Number > 0 {
				said += fmt.Sprintf(", generation %d", kept.Number)
			}
			say(said)
		case kept == nil || damaged:
			return fmt.Errorf("keep the seed on %s: %w", take.Where, err)
		default:
			say(fmt.Sprintf("cannot keep the new seed on %s: %v. This boot uses the previous one", take.Where, err))
		}
	}
	if damaged {
		return errors.New("no seed to apply")
	}
	if err := d.removeOthers(); err != nil { // left where power failed after the next seed was kept
		say(fmt.Sprintf("cannot erase an earlier seed: %v", err))
	}
	if err := d.Prepare(*kept); err != nil {
		return err
	}
	stays := fmt.Sprintf("this stays node %s, instance %s", kept.Node, kept.Instance)
	switch {
	case take != nil:
	case len(found) == 0:
		say("no seed is attached: " + stays)
	case len(notes) > 0:
		say(stays)
	}
	return d.show(currentLink)
}

// waitForSeed waits until a usable seed is attached, for a disk that has never had one: cloud-init would fall back to
// DHCP, and nobody could log in. said is what has already been reported about attached devices.
func waitForSeed(ctx context.Context, find func() []Found, said []string, every, remind time.Duration, say func(string)) (*Found, error) {
	const attach = "attach the seed of one node (imagegen seed makes it)"
	say("this disk has no seed yet: " + attach + ". Waiting for it")
	start := time.Now()
	last := start
	for {
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for a seed: %w", ctx.Err())
		case <-time.After(every):
		}
		take, notes := Choose(nil, find())
		if !slices.Equal(notes, said) {
			for _, n := range notes {
				say(n)
			}
			said = notes
		}
		if take != nil {
			return take, nil
		}
		if time.Since(last) >= remind {
			last = time.Now()
			say(fmt.Sprintf("still waiting for a seed, for %s: %s", time.Since(start).Round(time.Second), attach))
		}
	}
}

// settle waits until udev has processed all events.
func settle(ctx context.Context) {
	if _, err := os.Stat("/run/udev/control"); err == nil { // not in a container
		exec.CommandContext(ctx, "udevadm", "settle", "--timeout=20").Run() // on a timeout, continue without the missing devices
	}
}

// show makes a folder the one where cloud-init looks, replacing anything there.
func (d Disk) show(dir string) error {
	if err := os.MkdirAll(d.path(shownDir), 0o700); err != nil {
		return err
	}
	bind := func(from, to string) error {
		if err := syscall.Mount(d.path(from), d.path(to), "", syscall.MS_BIND, ""); err != nil {
			return fmt.Errorf("show cloud-init the seed: mount /%s at /%s: %w", from, to, err)
		}
		return nil
	}
	if err := bind(dir, shownDir); err != nil || !d.oneStage() {
		return err
	}
	meta, err := os.ReadFile(filepath.Join(d.path(dir), metaDataFile))
	if err != nil {
		return err
	}
	if err := os.WriteFile(d.path(localMetaData), append(meta, "dsmode: local\n"...), 0o600); err != nil {
		return err
	}
	// Where mounts are shared, as with systemd, the next one would appear in the kept seed as well.
	if err := syscall.Mount("", d.path(shownDir), "", syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("show cloud-init the seed: keep mounts at /%s apart: %w", shownDir, err)
	}
	return bind(localMetaData, filepath.Join(shownDir, metaDataFile))
}

// unshow ends what show added to the kept seed: a file that something is mounted over cannot be removed, so the node could not take
// over another seed.
func (d Disk) unshow() error {
	err := syscall.Unmount(filepath.Join(d.path(shownDir), metaDataFile), syscall.MNT_DETACH)
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, fs.ErrNotExist) { // nothing is mounted there
		return nil
	}
	return err
}

// oneStage tells whether cloud-init does everything before the network is up: the image masks its later stages. Each of them is a
// program of its own, and takes most of its time to start. cloud-init's documentation does not say so, but "dsmode: local" in
// meta-data has its first stage run the modules (22.4.2: _get_data in sources/DataSourceNoCloud.py, main_init in cmd/main.py).
func (d Disk) oneStage() bool {
	to, _ := os.Readlink(d.path(networkStage))
	return to == "/dev/null"
}

// MarkApplied runs after the last stage of cloud-init that uses the seed. If there is no other, it also writes the result, which
// the final stage does otherwise; "cloud-init status --wait" waits for it.
func (d Disk) MarkApplied() error { return d.conclude(syscall.Sync) }

func (d Disk) conclude(sync func()) error {
	status, had := d.status()
	if !d.oneStage() {
		return d.Applied(sync, errors.Join(had, status.errors("init-local", "init", "modules-config")))
	}
	had = errors.Join(had, status.errors("init-local"))
	if name := status.datasource(); had == nil && !strings.Contains(name, "[dsmode=local]") {
		had = fmt.Errorf("it has left the seed for a later stage, and there is none: its data source is %s", name)
	}
	return errors.Join(d.unshow(), d.Applied(sync, had), d.writeResult(status.datasource(), had))
}

// writeResult writes cloud-init's own summary of a boot; had may be nil.
func (d Disk) writeResult(datasource string, had error) error {
	var result struct {
		V1 struct {
			Datasource string   `json:"datasource"`
			Errors     []string `json:"errors"`
		} `json:"v1"`
	}
	result.V1.Datasource, result.V1.Errors = datasource, []string{}
	if had != nil {
		result.V1.Errors = strings.Split(had.Error(), "\n")
	}
	data, err := json.MarshalIndent(result, "", " ")
	if err != nil {
		return err
	}
	next := d.path(resultFile) + ".new"
	if err := os.WriteFile(next, append(data, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(next, d.path(resultFile))
}

// stages is what cloud-init says about this boot: its data source, and its stages.
type stages map[string]json.RawMessage

func (d Disk) status() (stages, error) {
	data, err := os.ReadFile(d.path(statusFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errors.New("it has not run")
	}
	if err != nil {
		return nil, err
	}
	var status struct {
		V1 stages `json:"v1"`
	}
	if err := json.Unmarshal(data, &status); err != nil {
		return nil, fmt.Errorf("/%s: %w", statusFile, err)
	}
	return status.V1, nil
}

func (s stages) datasource() string {
	var name string
	json.Unmarshal(s["datasource"], &name) // null if there was none
	return name
}

// errors returns what went wrong in these stages, and which of them have not finished.
func (s stages) errors(names ...string) error {
	if s == nil {
		return nil
	}
	var all []error
	for _, name := range names {
		var stage struct {
			Errors   []string `json:"errors"`
			Finished *float64 `json:"finished"`
		}
		if err := json.Unmarshal(s[name], &stage); err != nil {
			return fmt.Errorf("/%s: %s: %w", statusFile, name, err)
		}
		if len(stage.Errors) > 0 {
			all = append(all, fmt.Errorf("%s: %s", name, strings.Join(stage.Errors, "; ")))
		} else if stage.Finished == nil {
			all = append(all, fmt.Errorf("%s has not finished", name))
		}
	}
	return errors.Join(all...)
}
