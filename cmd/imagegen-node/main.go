// Command imagegen-node is the agent that is baked into every image. It reads the facts that the node's seed left in
// /etc/imagegen and brings the node's components to ready, for ever; package assemble is its brain.
//
// It has no settings: what a node is comes from its seed, and how it is doing from the console, the journal and the
// peer API.
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"

	"imagegen/assemble"
)

func main() {
	log.SetFlags(0) // the journal has the time
	if len(os.Args) > 1 {
		fmt.Fprintln(os.Stderr, "usage: imagegen-node")
		os.Exit(2)
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "imagegen-node:", err)
		os.Exit(1)
	}
}

func run() error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	agent, err := assemble.New("/", console)
	if err != nil {
		return err
	}
	if err := assemble.ApplySysctl("/", "/etc/sysctl.d/90-imagegen.conf"); err != nil {
		log.Printf("kernel parameters: %v", err)
	}
	// The seed's units came after systemd had read its folders.
	if out, err := exec.CommandContext(ctx, "systemctl", "daemon-reload").CombinedOutput(); err != nil {
		return fmt.Errorf("systemctl daemon-reload: %w: %s", err, out)
	}
	return agent.Run(ctx)
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
