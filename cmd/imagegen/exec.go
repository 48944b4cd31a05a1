package main

import "github.com/urfave/cli/v2"

func execCommand() *cli.Command {
	return &cli.Command{
		Name:      "exec",
		Category:  labCategory,
		Usage:     "run a command on a node, as root",
		ArgsUsage: "NODE -- COMMAND [ARGUMENT…]",
		Description: "Exits with the command's exit code. Standard input, output and error are the command's, unfiltered. In a virtual machine the\n" +
			"command runs through SSH and sudo; the spec must have one of your keys (ssh), from ~/.ssh or ssh-agent.",
		Flags: []cli.Flag{specFlag(), outFlag()},
		Action: func(c *cli.Context) error {
			args := c.Args().Slice()
			if len(args) < 3 || args[1] != "--" {
				return wrongf("exec takes a node and, after --, a command: imagegen exec NODE -- COMMAND")
			}
			l, err := openLabOf(c, newBlock(c), args[:1])
			if err != nil {
				return err
			}
			code, err := l.Exec(c.Context, args[0], args[2:], c.App.Reader, c.App.Writer, c.App.ErrWriter)
			if err != nil {
				return err
			}
			if code != 0 {
				return exitError(code)
			}
			return nil
		},
	}
}
