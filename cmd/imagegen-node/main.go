// Command imagegen-node is the agent that is baked into every image. It reads the facts that the node's seed wrote to
// /etc/imagegen, and brings the node's components to ready and keeps them there; package agent does the work.
//
// It has no settings. The seed says what the node is; console, journal and API report its state.
//
// Units in the image also run it for two short jobs on the seed: "seed" before cloud-init, and "seed-applied" after it.
// Package nocloud does that work.
package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"imagegen/agent"
	"imagegen/cloudinit/nocloud"
	"imagegen/cluster/facts"
)

func main() {
	log.SetFlags(0) // the journal adds the time
	job, ok := jobs[strings.Join(os.Args[1:], " ")]
	if !ok {
		fmt.Fprintln(os.Stderr, "usage: imagegen-node [seed | seed-applied]")
		os.Exit(2)
	}
	if err := job(); err != nil {
		fmt.Fprintln(os.Stderr, "imagegen-node:", err)
		os.Exit(1)
	}
}

// jobs are the subcommands that the image's units run.
var jobs = map[string]func() error{
	"":             run,
	"seed":         checkSeed,
	"seed-applied": nocloud.Disk{Root: "/"}.MarkApplied,
}

// checkSeed runs before cloud-init. If it fails, cloud-init does not run, and the console says why.
func checkSeed() error {
	err := nocloud.Disk{Root: "/"}.Check(context.Background(), console)
	if err != nil {
		console("cloud-init does not run: " + err.Error())
	}
	return err
}

func run() error {
	// What the agent does takes a thousandth of a processor, in short pieces. With more of them the runtime wakes up more threads than have
	// work, and with less garbage it needs less memory.
	runtime.GOMAXPROCS(1)
	debug.SetGCPercent(25)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	said, err := agent.Resume(ctx, "/")
	if err != nil {
		console(err.Error())
		return err
	}
	reread := !agent.Replaces()
	a, err := agent.New("/", made(nocloud.Disk{Root: "/"}), console)
	if err != nil {
		return err
	}
	a.Resumed(said)
	if err := agent.ApplySysctl("/", "/etc/sysctl.d/90-imagegen.conf"); err != nil {
		log.Printf("kernel parameters: %v", err)
	}
	// The seed's units were written after systemd had loaded its units.
	if reread {
		if out, err := exec.CommandContext(ctx, "systemctl", "daemon-reload").CombinedOutput(); err != nil {
			return fmt.Errorf("systemctl daemon-reload: %w: %s", err, out)
		}
	}
	err = a.Run(ctx)
	if again := (agent.Again{}); errors.As(err, &again) {
		return fmt.Errorf("start anew: %w", syscall.Exec(facts.AgentPath, []string{facts.AgentPath}, append(os.Environ(), again.Environment())))
	}
	return err
}

// made returns what the node was made from, as far as it is known.
func made(d nocloud.Disk) facts.Made {
	var m facts.Made
	if id, err := os.ReadFile(filepath.Join(d.Root, "usr/local/share/imagegen/image")); err == nil {
		m.Image = string(bytes.TrimSpace(id))
	}
	if seed, _ := d.Kept(); seed != nil { // a damaged copy still identifies its seed
		m.Seed = seed.Digest
	}
	// The machine-id is created at the first boot of a root disk. It is confidential (see machine-id(5)), so only a
	// hash is reported.
	if id, err := os.ReadFile(filepath.Join(d.Root, "etc/machine-id")); err == nil && len(bytes.TrimSpace(id)) > 0 {
		m.Machine = fmt.Sprintf("%x", sha256.Sum256(bytes.TrimSpace(id)))[:16]
	}
	return m
}

// console logs a line to the journal and to the machine's console, the only output visible without a network.
func console(line string) {
	log.Print(line)
	// Reopened for each line: a login prompt that starts on the console hangs up all open descriptors.
	tty, err := os.OpenFile("/dev/console", os.O_WRONLY|syscall.O_NOCTTY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return
	}
	defer tty.Close()
	tty.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
	fmt.Fprintf(tty, "imagegen: %s\r\n", line) // a blocked console loses lines but does not block the agent
}
