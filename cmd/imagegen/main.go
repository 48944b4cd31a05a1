// Command imagegen turns one file, cluster.yaml, into images and seeds of a fault-tolerant cluster, and runs that
// cluster on this machine. It holds flags, printing and exit codes; all else is in the packages beside it.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/urfave/cli/v2"

	"imagegen/cluster"
)

func main() {
	// Commands are short and use little memory: with Go's 100, collecting it was a fourth of what `seed` takes.
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(400)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	go func() {
		<-ctx.Done()
		stop() // a second Ctrl-C ends the program at once
	}()
	os.Exit(run(ctx, os.Args, os.Stdin, os.Stdout, os.Stderr))
}

// Exit codes. exec alone has others: those of the command that it ran.
const (
	exitDone   = 0
	exitFailed = 1
	exitWrong  = 2 // usage or spec: what a person wrote must change
)

// wrongError is a mistake in what a person wrote: arguments, spec or roles.
type wrongError struct{ error }

func (e wrongError) Unwrap() error { return e.error }

func wrongf(format string, args ...any) error { return wrongError{fmt.Errorf(format, args...)} }

// exitError ends the program with a code and no message: all has been said already.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// run is the whole program; it returns the exit code.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	app := newApp()
	app.Reader, app.Writer, app.ErrWriter = stdin, stdout, stderr
	err := app.RunContext(ctx, flagsFirst(app, args))

	var exit exitError
	var wrong wrongError
	var problems cluster.Problems
	var library cli.ExitCoder // the cli package's own: help for a command that is not there
	switch {
	case err == nil:
		return exitDone
	case errors.As(err, &exit):
		return int(exit)
	case ctx.Err() != nil && errors.Is(err, context.Canceled):
		fmt.Fprintln(stderr, "imagegen: interrupted")
		return exitFailed
	case errors.As(err, &problems):
		// One a line, in a form that editors jump to.
		fmt.Fprintf(stderr, "%v\n", problems)
		fmt.Fprintf(stderr, "imagegen: %s in what you wrote\n", count(len(problems), "fault"))
		return exitWrong
	}
	fmt.Fprintf(stderr, "imagegen: %v\n", err)
	if errors.As(err, &wrong) || errors.As(err, &library) {
		return exitWrong
	}
	return exitFailed
}

func newApp() *cli.App {
	app := &cli.App{
		Name:      "imagegen",
		Usage:     "a fault-tolerant cluster from one file: images, seeds, and a lab to run it in",
		UsageText: "imagegen COMMAND [FLAGS] [NODE or ROLE…]",
		Description: "cluster.yaml describes the cluster (imagegen init writes an example). imagegen build makes one image per role\n" +
			"and one seed ISO per node of it; imagegen up runs all of it on this machine.\n\n" +
			"Exit codes: 0 done; 1 failed; 2 wrong usage or spec. exec ends with the code of the command that it ran.",
		Commands: []*cli.Command{
			initCommand(), validateCommand(), seedCommand(), planCommand(), lockCommand(), fetchCommand(), buildCommand(), inspectCommand(),
			upCommand(), statusCommand(), logsCommand(), execCommand(), killCommand(), startCommand(), replaceCommand(), rollCommand(), decideCommand(), cutCommand(), mendCommand(), downCommand(),
			forwardCommand(),
		},
		EnableBashCompletion: true,
		Suggest:              true,
		HideVersion:          true,
		ExitErrHandler:       func(*cli.Context, error) {}, // run does it, once
		OnUsageError:         usageError,
		Action: func(c *cli.Context) error {
			if !c.Args().Present() {
				return cli.ShowAppHelp(c)
			}
			return wrongf("there is no command %s.%s", c.Args().First(), guess(c.Args().First(), cli.SuggestCommand(c.App.Commands, c.Args().First())))
		},
	}
	for _, c := range app.Commands {
		c.OnUsageError = usageError
		c.HideHelpCommand = true // a node may be called help
		c.UsageText = strings.TrimSpace("imagegen " + c.Name + " [FLAGS] " + c.ArgsUsage)
		for _, f := range c.Flags {
			if b, is := f.(*cli.BoolFlag); is {
				b.DisableDefaultText = true
			}
		}
	}
	return app
}

// usageError words a mistake in the flags.
func usageError(c *cli.Context, err error, _ bool) error {
	if name, ok := strings.CutPrefix(err.Error(), "flag provided but not defined: -"); ok {
		dashed := "-" + name
		if len(name) > 1 {
			dashed = "--" + name
		}
		if c.Command.Name == "exec" {
			return wrongf("exec has no flag %s; the command to run comes after --: imagegen exec NODE -- COMMAND", dashed)
		}
		return wrongf("%s has no flag %s.%s", c.Command.Name, dashed, guess(name, cli.SuggestFlag(c.Command.Flags, name, false)))
	}
	return wrongf("%s: %v", c.Command.Name, err)
}

// guess returns what the library suggests as a sentence of a message. The library always has something to suggest; what
// begins with another letter is rarely it.
func guess(typed, suggestion string) string {
	suggestion = strings.Trim(strings.TrimPrefix(suggestion, "Did you mean "), `"? `)
	if bare := strings.TrimLeft(suggestion, "-"); bare == "" || bare[0] != typed[0] {
		return ""
	}
	return " Did you mean " + suggestion + "?"
}

// flagsFirst moves flags that come after names before them, up to a --, since the cli package takes everything from
// the first name on for names.
func flagsFirst(app *cli.App, args []string) []string {
	if len(args) < 2 || app.Command(args[1]) == nil {
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
