package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"imagegen/cluster"
	"imagegen/distro"
	"imagegen/images/builder"
	"imagegen/images/format"
)

// completeName is the hidden command that the shells' completion scripts call.
const completeName = "__complete"

// The scripts ask for candidates for the last word, and get one per line: the word, a tab, and its description. A line
// ":files" asks the shell to complete file names.
var completions = map[string]string{
	"bash": `# imagegen completion bash
_imagegen() {
	local cur=${COMP_WORDS[COMP_CWORD]} line
	local words=("${COMP_WORDS[@]:1:COMP_CWORD}")
	COMPREPLY=()
	while IFS= read -r line; do
		if [ "$line" = :files ]; then
			compopt -o default 2>/dev/null
		else
			COMPREPLY+=("${line%%$'\t'*}")
		fi
	done < <("${COMP_WORDS[0]}" __complete "${words[@]}" 2>/dev/null </dev/null)
}
complete -F _imagegen imagegen
`,
	"zsh": `#compdef imagegen
# imagegen completion zsh
_imagegen() {
	local line files=0
	local -a found
	while IFS= read -r line; do
		if [[ $line == :files ]]; then
			files=1
		else
			found+=("${${line%%$'\t'*}//:/\\:}:${line#*$'\t'}")
		fi
	done < <("${words[1]}" __complete "${(@)words[2,CURRENT]}" 2>/dev/null </dev/null)
	if (( files )); then
		_files
	else
		_describe imagegen found
	fi
}
if [[ ${funcstack[1]} == _imagegen ]]; then
	_imagegen "$@"
else
	compdef _imagegen imagegen
fi
`,
	"fish": `# imagegen completion fish
function __imagegen_complete
	set -l words (commandline -opc) (commandline -ct)
	for line in ($words[1] __complete $words[2..-1] 2>/dev/null </dev/null)
		if test "$line" = :files
			__fish_complete_path (commandline -ct)
		else
			echo $line
		end
	end
end
complete -c imagegen -f -a '(__imagegen_complete)'
`,
}

func completionCommand() *cli.Command {
	return &cli.Command{
		Name:      "completion",
		Usage:     "print a shell script that completes commands, flags, nodes and roles",
		ArgsUsage: "bash|zsh|fish",
		Description: "Nodes and roles come from the spec in --file on the command line, or from cluster.yaml.\n\n" +
			"bash: source <(imagegen completion bash), in ~/.bashrc\n" +
			"zsh:  source <(imagegen completion zsh), in ~/.zshrc after compinit\n" +
			"fish: imagegen completion fish > ~/.config/fish/completions/imagegen.fish",
		Action: func(c *cli.Context) error {
			script, ok := completions[c.Args().First()]
			if c.NArg() != 1 || !ok {
				return wrongf("completion takes one shell: imagegen completion bash, zsh or fish")
			}
			fmt.Fprint(c.App.Writer, script)
			return nil
		},
	}
}

func completeCommand() *cli.Command {
	return &cli.Command{Name: completeName, Hidden: true, SkipFlagParsing: true, Action: func(c *cli.Context) error {
		for _, line := range complete(c, c.Args().Slice()) {
			fmt.Fprintln(c.App.Writer, line)
		}
		return nil
	}}
}

const completeFiles = ":files"

// complete returns the candidates for the last of words, the command line without the program's name.
func complete(c *cli.Context, words []string) []string {
	words = slices.Clone(words)
	for i := len(words) - 1; i > 0; i-- {
		if words[i] != "=" || !strings.HasPrefix(words[i-1], "--") {
			continue
		}
		// bash splits --file=x into three words.
		if i == len(words)-1 {
			words[i] = ""
		} else {
			words = slices.Delete(words, i, i+1)
		}
	}
	if len(words) == 0 {
		return nil
	}
	current, before := words[len(words)-1], words[:len(words)-1]
	var found []string
	if len(before) == 0 || before[0] == "help" {
		for _, command := range c.App.VisibleCommands() {
			found = append(found, command.Name+"\t"+command.Usage)
		}
		if len(before) == 0 {
			found = append(found, "--help\tshow help", "--version\tprint the version")
		}
		return beginning(found, current)
	}
	command := c.App.Command(before[0])
	if command == nil || slices.Contains(before, "--") {
		return []string{completeFiles}
	}
	last := before[len(before)-1]
	if f := flagNamed(command, last); f != nil && takesValue(f) {
		return beginning(valuesOf(c, command, f, before, current), current)
	}
	if name, value, ok := strings.Cut(current, "="); ok && strings.HasPrefix(name, "--") {
		f := flagNamed(command, name)
		if f == nil {
			return nil
		}
		for _, v := range beginning(valuesOf(c, command, f, before, value), value) {
			if v != completeFiles {
				v = name + "=" + v
			}
			found = append(found, v)
		}
		return found
	}
	if strings.HasPrefix(current, "-") {
		for _, f := range command.VisibleFlags() {
			usage := ""
			if d, ok := f.(cli.DocGenerationFlag); ok {
				usage = strings.ReplaceAll(d.GetUsage(), "`", "")
			}
			found = append(found, "--"+f.Names()[0]+"\t"+usage)
		}
		return beginning(append(found, "--help\tshow help"), current)
	}
	return beginning(namesFor(c, command, before), current)
}

// beginning returns those of found that begin with what is typed already.
func beginning(found []string, typed string) []string {
	return slices.DeleteFunc(found, func(s string) bool { return s != completeFiles && !strings.HasPrefix(s, typed) })
}

// flagNamed returns the flag of a command that a word is, or nil.
func flagNamed(command *cli.Command, word string) cli.Flag {
	if len(word) < 2 || word[0] != '-' {
		return nil
	}
	for _, f := range command.Flags {
		if slices.Contains(f.Names(), strings.TrimLeft(word, "-")) {
			return f
		}
	}
	return nil
}

func takesValue(f cli.Flag) bool {
	_, is := f.(*cli.BoolFlag)
	return !is
}

// valuesOf returns what a flag may be given.
func valuesOf(c *cli.Context, command *cli.Command, f cli.Flag, before []string, current string) []string {
	switch f.Names()[0] {
	case "file", "out", "cache", "agent":
		return []string{completeFiles}
	case "format":
		return listed(format.Names, current)
	case "builder":
		return slices.Clone(builder.Names)
	case "provider":
		return slices.Clone(cluster.Providers)
	case "distro":
		return slices.Clone(distro.Names())
	case "from", "without":
		var names []string
		for _, n := range nodesFor(c, command, before) {
			name, _, _ := strings.Cut(n, "\t")
			names = append(names, name)
		}
		return listed(names, current)
	}
	return nil
}

// listed completes the last element of a list with commas.
func listed(values []string, current string) []string {
	lead := current[:strings.LastIndex(current, ",")+1]
	var found []string
	for _, v := range values {
		found = append(found, lead+v)
	}
	return found
}

// namesFor returns what a command takes besides flags, without what it got already.
func namesFor(c *cli.Context, command *cli.Command, before []string) []string {
	var found []string
	switch args := command.ArgsUsage; {
	case command.Name == "completion":
		found = []string{"bash", "fish", "zsh"}
	case strings.Contains(args, "NODE"):
		found = nodesFor(c, command, before)
	case strings.Contains(args, "ROLE"), strings.Contains(args, "COMPONENT"):
		p := specOf(c, command, before)
		if p == nil {
			return nil
		}
		for _, r := range p.spec.Roles {
			role := p.catalogue.Role(r.Name)
			if strings.Contains(args, "ROLE") {
				found = append(found, r.Name+"\t"+role.Description)
				continue
			}
			for _, component := range role.Components {
				found = append(found, component.Name+"\tcomponent of "+r.Name)
			}
		}
	case strings.Contains(args, "FILE"), strings.Contains(args, "DIR"):
		return []string{completeFiles}
	}
	return slices.DeleteFunc(found, func(s string) bool {
		name, _, _ := strings.Cut(s, "\t")
		return slices.Contains(before[1:], name)
	})
}

func nodesFor(c *cli.Context, command *cli.Command, before []string) []string {
	p := specOf(c, command, before)
	if p == nil {
		return nil
	}
	var found []string
	for _, n := range p.spec.Nodes() {
		found = append(found, fmt.Sprintf("%s\t%s, %s", n.Name, n.Role, n.IP))
	}
	return found
}

// specOf loads the spec that the line names; nil when there is none, or one with faults: then nothing of it is
// completed. A spec on standard input is not there yet.
func specOf(c *cli.Context, command *cli.Command, before []string) *project {
	file := "cluster.yaml"
	for i, word := range before {
		name, value, joined := strings.Cut(word, "=")
		f := flagNamed(command, name)
		if f == nil || f.Names()[0] != "file" {
			continue
		}
		if joined {
			file = value
		} else if i+1 < len(before) {
			file = before[i+1]
		}
	}
	if name, _ := specPlace(file); name != file {
		return nil
	}
	p, err := loadFile(c, file)
	if err != nil {
		return nil
	}
	return p
}
