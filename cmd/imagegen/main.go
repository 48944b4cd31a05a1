// Command imagegen builds the images and seeds of a fault-tolerant cluster from one file, cluster.yaml, and creates and
// operates the cluster. It contains only flags, output and exit codes; other packages do the work.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"

	"github.com/urfave/cli/v2"

	"imagegen/cluster"
	"imagegen/internal/words"
)

func main() {
	// Commands are short and use little memory. With the default of 100, garbage collection took a quarter of seed's
	// time.
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(400)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	go func() {
		<-ctx.Done()
		stop() // a second Ctrl-C kills the program
	}()
	os.Exit(run(ctx, os.Args, os.Stdin, os.Stdout, os.Stderr))
}

// Exit codes. exec may return others: those of its command.
const (
	exitDone   = 0
	exitFailed = 1
	exitWrong  = 2 // wrong usage or spec: the user must change something
)

// wrongError is a mistake in the user's input: arguments, spec or roles.
type wrongError struct{ error }

func (e wrongError) Unwrap() error { return e.error }

func wrongf(format string, args ...any) error { return wrongError{fmt.Errorf(format, args...)} }

// exitError ends the program with a code and without a message.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// run runs the program and returns its exit code.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	app := newApp()
	app.Reader, app.Writer, app.ErrWriter = stdin, stdout, stderr
	err := app.RunContext(ctx, flagsFirst(app, args))

	var exit exitError
	var wrong wrongError
	var problems cluster.Problems
	var library cli.ExitCoder   // from the cli package: help for an unknown command
	var program *exec.ExitError // implements cli.ExitCoder, but is the failure of a program that was run
	switch {
	case err == nil:
		return exitDone
	case errors.As(err, &exit):
		return int(exit)
	case ctx.Err() != nil && errors.Is(err, context.Canceled):
		fmt.Fprintln(stderr, "imagegen: interrupted")
		return exitFailed
	case errors.As(err, &problems):
		// One per line, in the format that editors recognise.
		fmt.Fprintf(stderr, "%s\n", printable(problems.Error()))
		fmt.Fprintf(stderr, "imagegen: %s in the spec or its roles\n", count(len(problems), "error"))
		return exitWrong
	}
	if m := noTopic.FindStringSubmatch(err.Error()); m != nil {
		err = wrongf("there is no command %s.%s", m[1], guess(m[1], commandNames(app)))
	}
	fmt.Fprintf(stderr, "imagegen: %s\n", printable(err.Error()))
	if errors.As(err, &wrong) || errors.As(err, &library) && !errors.As(err, &program) {
		return exitWrong
	}
	return exitFailed
}

// noTopic matches the cli package's error about help for an unknown command.
var noTopic = regexp.MustCompile(`^No help topic for '(.*)'`)

func newApp() *cli.App {
	app := &cli.App{
		Name:      "imagegen",
		Usage:     "builds and runs a fault-tolerant cluster from one file",
		UsageText: "imagegen COMMAND [FLAGS] [NODE or ROLE…]",
		Description: "cluster.yaml describes the cluster (imagegen init writes an example). imagegen build makes one image per role\n" +
			"and one seed ISO per node; imagegen up runs the cluster on this machine.\n\n" +
			"Exit codes: 0 done; 1 failed; 2 wrong usage or spec. exec exits with the code of the command that it ran.",
		Commands: []*cli.Command{
			initCommand(), validateCommand(), seedCommand(), planCommand(), lockCommand(), fetchCommand(), buildCommand(), inspectCommand(),
			upCommand(), statusCommand(), diffCommand(), applyCommand(), logsCommand(), eventsCommand(), execCommand(), killCommand(), startCommand(), replaceCommand(), rollCommand(), decideCommand(), cutCommand(), mendCommand(), downCommand(),
			completionCommand(), forwardCommand(), completeCommand(),
		},
		Suggest:        true,
		HideVersion:    true, // it would appear in the help and the docs
		Flags:          []cli.Flag{&cli.BoolFlag{Name: "version", Usage: "print the version", DisableDefaultText: true}},
		ExitErrHandler: func(*cli.Context, error) {}, // run handles errors
		OnUsageError:   usageError,
		Action: func(c *cli.Context) error {
			if c.Bool("version") {
				fmt.Fprintf(c.App.Writer, "imagegen %s\n", versionText())
				return nil
			}
			if !c.Args().Present() {
				return cli.ShowAppHelp(c)
			}
			return wrongf("there is no command %s.%s", c.Args().First(), guess(c.Args().First(), commandNames(c.App)))
		},
	}
	for _, c := range app.Commands {
		c.OnUsageError = usageError
		c.Before = checkDurations
		c.HideHelpCommand = true // a node may be named help
		c.UsageText = strings.TrimSpace("imagegen " + c.Name + " [FLAGS] " + c.ArgsUsage)
		for _, f := range c.Flags {
			if b, is := f.(*cli.BoolFlag); is {
				b.DisableDefaultText = true
			}
		}
	}
	return app
}

// commandNames returns the names of the visible commands.
func commandNames(app *cli.App) []string {
	var names []string
	for _, c := range app.VisibleCommands() {
		names = append(names, c.Name)
	}
	return names
}

// checkDurations rejects durations that are not positive, for all flags.
func checkDurations(c *cli.Context) error {
	for _, f := range c.Command.Flags {
		d, is := f.(*cli.DurationFlag)
		if is && c.IsSet(d.Name) && c.Duration(d.Name) <= 0 {
			return wrongf("--%s %s: must be longer than 0, such as 90s or 5m", d.Name, c.Duration(d.Name))
		}
	}
	return nil
}

// usageError rewords the flag package's errors.
func usageError(c *cli.Context, err error, _ bool) error {
	if name, ok := strings.CutPrefix(err.Error(), "flag provided but not defined: -"); ok {
		dashed := "-" + name
		if len(name) > 1 {
			dashed = "--" + name
		}
		if c.Command.Name == "exec" {
			return wrongf("exec has no flag %s; the command to run comes after --: imagegen exec NODE -- COMMAND", dashed)
		}
		var names []string
		for _, f := range c.Command.Flags {
			names = append(names, f.Names()...)
		}
		said := ""
		if near := words.Nearest(name, names); near != "" && len(name) > 1 {
			said = " Did you mean --" + near + "?"
		}
		return wrongf("%s has no flag %s.%s", c.Command.Name, dashed, said)
	}
	if m := badValue.FindStringSubmatch(err.Error()); m != nil {
		for _, f := range c.Command.Flags {
			if !slices.Contains(f.Names(), m[2]) {
				continue
			}
			switch f.(type) {
			case *cli.DurationFlag:
				return wrongf("--%s %s is not a time, such as 90s or 5m", m[2], m[1])
			case *cli.IntFlag:
				return wrongf("--%s %s is not a whole number", m[2], m[1])
			}
		}
	}
	return wrongf("%s: %v", c.Command.Name, err)
}

// badValue matches the flag package's error about an invalid value.
var badValue = regexp.MustCompile(`^invalid value "(.*)" for flag -([a-z-]+): `)

// guess returns a "Did you mean" suffix for a message about an unknown name, or "" if no name is similar.
func guess(typed string, names []string) string {
	if near := words.Nearest(typed, names); near != "" {
		return " Did you mean " + near + "?"
	}
	return ""
}

// flagsFirst moves flags before names, up to a --, because the cli package treats everything after the first name as
// names.
func flagsFirst(app *cli.App, args []string) []string {
	if len(args) < 2 || app.Command(args[1]) == nil || args[1] == completeName {
		return args
	}
	takesValue := map[string]bool{}
	for _, f := range app.Command(args[1]).Flags {
		if _, is := f.(*cli.BoolFlag); !is {
			for _, name := range f.Names() {
				takesValue[name] = true
			}
		}
	}
	flags, names := args[:2:2], []string{}
	for rest := args[2:]; len(rest) > 0; rest = rest[1:] {
		arg := rest[0]
		if arg == "--" {
			names = append(names, rest...)
			break
		}
		if len(arg) < 2 || arg[0] != '-' {
			names = append(names, arg)
			continue
		}
		flags = append(flags, arg)
		if takesValue[strings.TrimLeft(arg, "-")] && len(rest) > 1 {
			rest = rest[1:]
			flags = append(flags, rest[0])
		}
	}
	return append(flags, names...)
}
