package docs

import "strings"

// section is the part of a Markdown page from a heading to the next one of its
// level.
func section(page, heading string) string {
	_, rest, ok := strings.Cut("\n"+page, "\n"+heading+"\n")
	if !ok {
		return ""
	}
	level, _, _ := strings.Cut(heading, " ")
	rest, _, _ = strings.Cut(rest, "\n"+level+" ")
	return rest
}

// shellCommands are the commands in a page's ```sh and ```console blocks: one for
// each line, or for several that end with a backslash. In console blocks, lines
// without a prompt are output. Comments are left out.
func shellCommands(page string) []string {
	var commands []string
	var block string
	joined := ""
	for line := range strings.Lines(page) {
		line = strings.TrimRight(line, "\n")
		if fence, ok := strings.CutPrefix(strings.TrimSpace(line), "```"); ok {
			if block == "" {
				block = fence + " "
			} else {
				block = ""
			}
			continue
		}
		switch strings.TrimSpace(block) {
		case "sh", "bash", "shell":
		case "console":
			prompted, ok := strings.CutPrefix(strings.TrimSpace(line), "$ ")
			if !ok && joined == "" {
				continue
			}
			if ok {
				line = prompted
			}
		default:
			continue
		}
		if cut, ok := strings.CutSuffix(line, `\`); ok {
			joined += strings.TrimSpace(cut) + " "
			continue
		}
		line, joined = joined+strings.TrimSpace(line), ""
		if i := comment(line); i >= 0 {
			line = strings.TrimSpace(line[:i])
		}
		if line != "" {
			commands = append(commands, line)
		}
	}
	return commands
}

// comment is where the comment of a shell line begins, or -1.
func comment(line string) int {
	var quote byte
	for i := range len(line) {
		switch c := line[i]; {
		case quote != 0:
			if c == quote {
				quote = 0
			}
		case c == '\'' || c == '"':
			quote = c
		case c == '#' && (i == 0 || line[i-1] == ' '):
			return i
		}
	}
	return -1
}
