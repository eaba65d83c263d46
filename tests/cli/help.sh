#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Help texts, and the completions that come from the same tables.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"

commands=$("$MOEPACK" --help | sed -n '/^Commands:/,/^$/s/^  \([a-z]*\) .*/\1/p')

it "lists the commands"
for option in --help -h help; do
    run moepack $option
    assert_status 0
    assert_stderr_is ''
    assert_stdout_has 'Usage: moepack COMMAND'
    assert_stdout_has '  targets     list the target layouts'
done

it "fits a terminal of 80 columns"
run moepack --help
assert_equal "$(awk 'length > 80' "$stdout")" ''
for command in $commands; do
    run moepack "$command" --help
    assert_equal "$(awk 'length > 80' "$stdout")" ''
done

for command in $commands; do
    it "helps with $command, whatever else is given"
    run moepack "$command" --help --nonsense
    assert_status 0
    assert_stderr_is ''
    assert_stdout_has "Usage: moepack $command"
    assert_stdout_has '-h, --help '
    cp "$stdout" long
    run moepack "$command" -h
    assert_file_is "$stdout" <long
done

it "prints help where there is no man"
run env PATH=/nonexistent "$MOEPACK" help targets
assert_status 0
assert_stderr_is ''
assert_stdout_has 'Usage: moepack targets'

it "opens the manual page with man"
mkdir bin
cat >bin/man <<'END'
#!/bin/sh
echo "man $*"
END
chmod +x bin/man
run env PATH="$PWD/bin:$PATH" "$MOEPACK" help targets
assert_status 0
assert_stdout 'man moepack-targets'

it "prints help where man does not know the page"
mkdir bin
printf '#!/bin/sh\necho "No manual entry" >&2\nexit 16\n' >bin/man
chmod +x bin/man
run env PATH="$PWD/bin:$PATH" "$MOEPACK" help targets
assert_status 0
assert_stderr_is ''
assert_stdout_has 'Usage: moepack targets'

it "has no help on what is no command"
run moepack help tagrets
assert_status 2
assert_stderr_is <<'END'
moepack: help: 'tagrets' is not a command; did you mean 'targets'?
try 'moepack help --help'
END

it "completes in no other shell"
run moepack completion csh
assert_status 2
assert_stderr_is <<'END'
moepack: completion: 'csh' is not bash, zsh or fish
try 'moepack completion --help'
END

# Prints what bash would offer for the words given, the last being completed.
complete_bash()
{
    "$MOEPACK" completion bash >completion.bash
    # shellcheck disable=SC2016
    bash -c '. ./completion.bash
        COMP_WORDS=("$@")
        COMP_CWORD=$(($# - 1))
        _moepack
        echo "${COMPREPLY[*]}"' bash "$@"
}

it "completes commands in bash"
assert_equal "$(complete_bash moepack targ)" 'targets'
assert_equal "$(complete_bash moepack help targ)" 'targets'
assert_equal "$(complete_bash moepack --v)" '--version'

it "completes options in bash"
assert_equal "$(complete_bash moepack targets --js)" '--json'
assert_equal "$(complete_bash moepack completion --js)" ''

it "completes the values of options in bash"
assert_equal "$(complete_bash moepack targets --color a)" 'auto always'
assert_equal "$(complete_bash moepack targets --color = n)" 'never'
assert_equal "$(complete_bash moepack targets --color =)" 'auto always never'
assert_equal "$(complete_bash moepack completion '')" 'bash zsh fish'

it "leaves other values to bash, which offers files"
assert_equal "$(complete_bash moepack targets --threads '')" ''

# Long names of the options that a script describes for a command.
fish_options()
{
    moepack completion fish | sed -n "s/.*_from $1' -l \([a-z0-9-]*\).*/\1/p"
}

zsh_options()
{
    moepack completion zsh | sed -n "/^    $1)/,/;;/p" |
        sed -n "s/^ *'[^{]*--\([a-z0-9-]*\)[=[].*/\1/p; s/^ *'.*{-.,--\([a-z0-9-]*\).*/\1/p"
}

it "describes every option to zsh and fish"
for command in $commands; do
    options=$(moepack "$command" --help |
        sed -n 's/^ \{2,6\}\(-[a-zA-Z], \)\{0,1\}--\([a-z0-9-]*\).*/\2/p')
    assert_equal "$(fish_options "$command")" "$options"
    assert_equal "$(zsh_options "$command")" "$options"
done

for shell in zsh fish; do
    if command -v $shell >/dev/null; then
        it "writes a script that $shell can parse"
        moepack completion $shell >script
        run $shell -n script
        assert_status 0
        assert_stderr_is ''
    fi
done

finish
