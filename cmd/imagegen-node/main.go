// Command imagegen-node is the agent that is baked into every image. It reads the facts that the node's seed left in
// /etc/imagegen and brings the node's components to ready, for ever; package agent is its brain.
//
// It has no settings: what a node is comes from its seed, and how it is doing from the console, the journal and the
// peer API.
//
// Two short-lived jobs beside it, which units of the image call, look after the seed: "seed" before cloud-init and
// "seed-applied" after it. Package nocloud does the work.
package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"log"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"imagegen/agent"
	"imagegen/cloudinit/nocloud"
	"imagegen/cluster/facts"
)

func main() {
	log.SetFlags(0) // the journal has the time
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

// jobs are what the image's units call.
var jobs = map[string]func() error{
	"":             run,
	"seed":         checkSeed,
	"seed-applied": nocloud.Disk{Root: "/"}.MarkApplied,
}

// checkSeed runs before cloud-init. A node whose seed cannot be checked starts without cloud-init, and says why.
func checkSeed() error {
	err := nocloud.Disk{Root: "/"}.Check(context.Background(), console)
	if err != nil {
		console("cloud-init does not run: " + err.Error())
	}
	return err
}

func run() error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	a, err := agent.New("/", made(nocloud.Disk{Root: "/"}), console)
	if err != nil {
		return err
	}
	if err := agent.ApplySysctl("/", "/etc/sysctl.d/90-imagegen.conf"); err != nil {
		log.Printf("kernel parameters: %v", err)
	}
	// The seed's units came after systemd had read its folders.
	if out, err := exec.CommandContext(ctx, "systemctl", "daemon-reload").CombinedOutput(); err != nil {
		return fmt.Errorf("systemctl daemon-reload: %w: %s", err, out)
	}
	return a.Run(ctx)
}

// made says what the node was made from, as far as that is known.
func made(d nocloud.Disk) facts.Made {
	var m facts.Made
	if seed, _ := d.Kept(); seed != nil { // a copy that is damaged is still of that seed
		m.Seed = seed.Digest
	}
	// Made at the first boot of a root disk. The identity itself is nobody's business.
	if id, err := os.ReadFile(filepath.Join(d.Root, "etc/machine-id")); err == nil && len(bytes.TrimSpace(id)) > 0 {
		m.Machine = fmt.Sprintf("%x", sha256.Sum256(bytes.TrimSpace(id)))[:16]
	}
	return m
}

// console writes a line to the journal and to the machine's console, where somebody looks who has no other way in.
func console(line string) {
	log.Print(line)
	// Opened anew for each line: a login prompt that starts on the console hangs up whoever had it open.
	tty, err := os.OpenFile("/dev/console", os.O_WRONLY|syscall.O_NOCTTY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return
	}
	defer tty.Close()
	tty.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
	fmt.Fprintf(tty, "imagegen: %s\r\n", line) // a console that takes no more loses lines, not the agent
}
