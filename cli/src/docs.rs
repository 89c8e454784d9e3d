//! What the pages tell people to type is there: commands of this program, and labels of what the chart makes.

use std::fs::{read_dir, read_to_string};
use std::path::{Path, PathBuf};

use clap::{Command, CommandFactory as _};

use super::{Cli, Plugin};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The pages that people have before them when they type: path from the root, text.
fn pages() -> Vec<(String, String)> {
    let playbooks = read_dir(root().join("docs/playbooks")).unwrap();
    let mut pages: Vec<String> = playbooks
        .map(|entry| format!("docs/playbooks/{}", entry.unwrap().file_name().display()))
        .filter(|path| path.ends_with(".md"))
        .collect();
    pages.extend(["docs/site.md", "docs/deployment.md", "README.md"].map(String::from));
    let texts: Vec<String> = pages.iter().map(|path| read_to_string(root().join(path)).unwrap()).collect();
    pages.into_iter().zip(texts).collect()
}

/// Code on a page: its line, and whether it stands in a sentence.
fn code(page: &str) -> Vec<(usize, &str, bool)> {
    let (mut fenced, mut found) = (false, Vec::new());
    for (number, line) in (1..).zip(page.lines()) {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if fenced {
            found.push((number, line.trim(), false));
        } else {
            found.extend(line.split('`').skip(1).step_by(2).map(|code| (number, code, true)));
        }
    }
    found
}

/// A command of ours, as a shell would hand it over.
#[derive(Debug, PartialEq)]
struct Typed {
    plugin: bool,
    words: Vec<String>,
}

/// The commands in a piece of code, also behind a pipe or on another machine.
fn commands(code: &str) -> Vec<Typed> {
    let at_begin = |before: &str| {
        before.is_empty() || ["$ ", "| ", "; ", "&& ", "BLADE ", "'"].iter().any(|end| before.ends_with(end))
    };
    let typed = code.match_indices("whet ").filter_map(|(at, _)| {
        let (before, from) = code.split_at(at);
        let outer = before.strip_suffix("kubectl ");
        let before = outer.unwrap_or(before);
        at_begin(before)
            .then(|| Typed { plugin: outer.is_some(), words: words(from, before.ends_with('\'')) })
    });
    typed.collect()
}

/// Up to where the shell goes on to something else, or a description begins. `quoted`: also to the end of the quotes around it.
fn words(text: &str, quoted: bool) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '\'') if quoted => break,
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, '|' | ';' | '&' | '<' | '>' | '#' | ')') => break,
            (None, ' ') => {
                words.extend(word.take());
                if chars.peek() == Some(&' ') {
                    break;
                }
            }
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words.into_iter().map(filled_in).collect()
}

/// Words in capitals are the reader's to fill in.
fn filled_in(word: String) -> String {
    match word.as_str() {
        "N" | "RUN" => "41".to_owned(),
        "TIME" => "72h".to_owned(),
        _ => word,
    }
}

/// What is wrong with a command. In a sentence a verb may stand for itself.
fn problem(typed: &Typed, in_sentence: bool) -> Option<String> {
    let command = if typed.plugin { Plugin::command() } else { Cli::command() };
    let error = command.clone().try_get_matches_from(&typed.words).err()?;
    let is_verb = in_sentence && is_verb(&command, typed.words.get(1..)?);
    (error.use_stderr() && !is_verb).then(|| error.to_string())
}

fn is_verb(command: &Command, words: &[String]) -> bool {
    let mut at = Some(command);
    words.iter().for_each(|word| at = at.and_then(|at| at.find_subcommand(word)));
    at.is_some()
}

#[test]
fn commands_are_found_where_a_shell_finds_them() {
    let found = |code: &str| -> Vec<String> {
        let said =
            |typed: Typed| format!("{}{}", if typed.plugin { "kubectl " } else { "" }, typed.words.join("+"));
        commands(code).into_iter().map(said).collect()
    };
    assert_eq!(found("whet blades --watch              # or kubectl get blades"), ["whet+blades+--watch"]);
    assert_eq!(
        found("$ whet release B --repaired \"new | fan\" && whet blades"),
        ["whet+release+B+--repaired+new | fan", "whet+blades"]
    );
    assert_eq!(found("ssh BLADE 'whet probe --json' | jq .facts"), ["whet+probe+--json"]);
    assert_eq!(found("dmesg | tail -5 | whet classify"), ["whet+classify"]);
    assert_eq!(found("kubectl whet audit --limit N"), ["kubectl whet+audit+--limit+41"]);
    assert_eq!(found("target/debug/whet blades; the whet of it"), [""; 0]);
    let page = "Ask `whet cases` or\n```\nwhet blades\n```\nand `b`";
    assert_eq!(code(page), [(1, "whet cases", true), (3, "whet blades", false), (5, "b", true)]);
}

#[test]
fn a_command_that_is_none_is_found_out() {
    let wrong = |code: &str, in_sentence| commands(code).iter().find_map(|typed| problem(typed, in_sentence));
    for code in [
        "whet blade",
        "whet blades --wid",
        "whet tranche report T",
        "whet audit --limit x",
        "kubectl whet site up",
    ] {
        assert!(wrong(code, true).is_some(), "{code}");
    }
    assert_eq!(wrong("whet tranche report", true), None);
    assert!(wrong("whet tranche report", false).is_some());
}

#[test]
fn every_command_on_the_pages_is_one() {
    let (mut looked_at, mut problems) = (0, Vec::new());
    for (path, text) in pages() {
        for (line, code, in_sentence) in code(&text) {
            for typed in commands(code) {
                looked_at += 1;
                problems.extend(
                    problem(&typed, in_sentence).map(|what| format!("{path}:{line}: {code}\n{what}")),
                );
            }
        }
    }
    assert!(looked_at > 80, "only {looked_at} commands were found");
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn every_example_in_a_help_text_is_one() {
    fn look(command: &Command, problems: &mut Vec<String>, looked_at: &mut usize) {
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        for typed in help.lines().flat_map(|line| commands(line.trim())) {
            *looked_at += 1;
            problems.extend(problem(&typed, false).map(|what| format!("{}: {what}", typed.words.join(" "))));
        }
        command.get_subcommands().for_each(|verb| look(verb, problems, looked_at));
    }
    let (mut problems, mut looked_at) = (Vec::new(), 0);
    look(&Cli::command(), &mut problems, &mut looked_at);
    assert!(looked_at > 15, "only {looked_at} examples were found");
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn labels_that_the_pages_select_by_are_those_of_the_chart() {
    let manifests = read_to_string(root().join("deploy/manifests/whetstone.yaml")).unwrap();
    let mut looked_at = 0;
    for (path, text) in pages() {
        for (at, _) in text.match_indices("app.kubernetes.io/") {
            let rest = &text[at..];
            let end =
                rest.find(|c: char| !c.is_ascii_alphanumeric() && !"./=-_".contains(c)).unwrap_or(rest.len());
            let (key, value) = rest[..end].split_once('=').unwrap();
            looked_at += 1;
            let label = format!("{key}: {value}");
            assert!(
                manifests.lines().any(|line| line.trim() == label),
                "{path}: no object has the label {label}"
            );
        }
    }
    assert!(looked_at > 1, "only {looked_at} labels were found");
}
