//! Rust source as bare code: enough of a lexer to tell a word of the program from one in a comment or a text.

/// `std` modules and types that a pure crate has no use for: clock, files, network, processes, threads, the
/// environment, standard streams.
const IMPURE_MODULES: [&str; 7] = ["fs", "net", "process", "thread", "env", "io", "os"];
const IMPURE_WORDS: [&str; 8] =
    ["SystemTime", "Instant", "println", "eprintln", "print", "eprint", "RandomState", "thread_local"];

/// The source with comments, texts and character literals blanked, line breaks kept.
pub fn bare(source: &str) -> String {
    let chars: Vec<char> = source.chars().collect();
    let mut out = String::with_capacity(source.len());
    let mut i = 0;
    let keep = |out: &mut String, from: usize, to: usize| {
        out.extend(chars[from..to.min(chars.len())].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
    };
    while i < chars.len() {
        let rest = &chars[i..];
        let end = match rest {
            ['/', '/', ..] => i + rest.iter().position(|c| *c == '\n').unwrap_or(rest.len()),
            ['/', '*', ..] => i + block_comment(rest),
            ['"', ..] => i + text(rest),
            ['r' | 'b' | 'c', ..] if !preceded_by_word(&chars, i) && raw_or_prefixed(rest).is_some() => {
                i + raw_or_prefixed(rest).unwrap_or(1)
            }
            ['\'', '\\', ..] => {
                i + 2 + rest[2..].iter().skip(1).position(|c| *c == '\'').map_or(1, |p| p + 2)
            }
            ['\'', _, '\'', ..] => i + 3,
            _ => {
                out.push(chars[i]);
                i += 1;
                continue;
            }
        };
        keep(&mut out, i, end);
        i = end;
    }
    out
}

fn preceded_by_word(chars: &[char], i: usize) -> bool {
    i > 0 && (chars[i - 1].is_alphanumeric() || chars[i - 1] == '_')
}

fn block_comment(rest: &[char]) -> usize {
    let (mut depth, mut i) = (0usize, 0usize);
    while i < rest.len() {
        match rest[i..] {
            ['/', '*', ..] => (depth, i) = (depth + 1, i + 2),
            ['*', '/', ..] => {
                (depth, i) = (depth - 1, i + 2);
                if depth == 0 {
                    return i;
                }
            }
            _ => i += 1,
        }
    }
    rest.len()
}

/// Length of a text that begins with a quote.
fn text(rest: &[char]) -> usize {
    let mut i = 1;
    while i < rest.len() {
        match rest[i] {
            '\\' => i += 2,
            '"' => return i + 1,
            _ => i += 1,
        }
    }
    rest.len()
}

/// Length of `b"…"`, `c"…"`, `r"…"`, `r#"…"#`, `br#"…"#`, `b'…'`; `None` if it is none of them.
fn raw_or_prefixed(rest: &[char]) -> Option<usize> {
    let prefix = rest.iter().take(2).take_while(|c| matches!(c, 'r' | 'b' | 'c')).count();
    let raw = rest[..prefix].contains(&'r');
    let hashes = rest[prefix..].iter().take_while(|c| **c == '#').count();
    let at = prefix + hashes;
    match rest.get(at)? {
        '"' if raw => {
            let close: Vec<char> = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
            let body = at + 1;
            let end = rest[body..].windows(close.len()).position(|w| w == close.as_slice());
            Some(end.map_or(rest.len(), |p| body + p + close.len()))
        }
        '"' if hashes == 0 => Some(at + text(&rest[at..])),
        '\'' if hashes == 0 && prefix == 1 && rest[0] == 'b' => {
            let body = if rest.get(at + 1) == Some(&'\\') { at + 3 } else { at + 2 };
            Some(rest[body..].iter().position(|c| *c == '\'').map_or(rest.len(), |p| body + p + 1))
        }
        _ => None,
    }
}

/// Whole words of bare code with their line, from 1.
pub fn words(bare: &str) -> impl Iterator<Item = (usize, &str)> {
    bare.lines().enumerate().flat_map(|(i, line)| {
        line.split(|c: char| !(c.is_alphanumeric() || c == '_'))
            .filter(|w| !w.is_empty())
            .map(move |w| (i + 1, w))
    })
}

/// Bare code without its test modules: what follows `#[cfg(test)]` is dropped, which is why test modules stand
/// at the end of a file.
pub fn without_tests(bare: &str) -> &str {
    bare.find("#[cfg(test)]").map_or(bare, |at| &bare[..at])
}

/// Uses of clock, files, network, … in bare code: line and what is used.
pub fn impurities(bare: &str) -> Vec<(usize, String)> {
    let code = without_tests(bare);
    let mut found: Vec<(usize, String)> =
        words(code).filter(|(_, w)| IMPURE_WORDS.contains(w)).map(|(line, w)| (line, w.to_owned())).collect();
    for root in ["std", "core"] {
        for (at, _) in code.match_indices(root) {
            let before = code[..at].chars().next_back();
            let line = 1 + code[..at].matches('\n').count();
            let Some(path) = code[at + root.len()..].trim_start().strip_prefix("::") else { continue };
            if before.is_some_and(|c| c.is_alphanumeric() || c == '_') {
                continue;
            }
            for module in first_segments(path) {
                if IMPURE_MODULES.contains(&module) {
                    found.push((line, format!("{root}::{module}")));
                }
            }
        }
    }
    found.sort();
    found
}

/// The names that directly follow a `::`: one, or those of a group `{a, b::c}`.
fn first_segments(path: &str) -> Vec<&str> {
    let path = path.trim_start();
    let name =
        |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').map(char::len_utf8).sum();
    let Some(group) = path.strip_prefix('{') else {
        let len: usize = name(path);
        return vec![&path[..len]];
    };
    let (mut depth, mut start, mut segments) = (0usize, 0usize, Vec::new());
    for (i, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            ',' | '}' if depth == 0 => {
                let item = group[start..i].trim_start();
                let len: usize = name(item);
                segments.push(&item[..len]);
                start = i + 1;
                if c == '}' {
                    break;
                }
            }
            '}' => depth -= 1,
            _ => {}
        }
    }
    segments
}

/// Lines where bare code uses or allows `unsafe`.
pub fn unsafe_lines(bare: &str) -> Vec<usize> {
    let mut lines: Vec<usize> = words(bare)
        .filter(|(line, w)| {
            let allows = *w == "unsafe_code" && !forbids(bare.lines().nth(line - 1).unwrap_or_default());
            *w == "unsafe" || allows
        })
        .map(|(line, _)| line)
        .collect();
    lines.dedup();
    lines
}

fn forbids(line: &str) -> bool {
    line.contains("forbid(") || line.contains("deny(")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_texts_are_no_code() {
        let source = "// unsafe\n/* unsafe /* fs */ */ let a = \"unsafe \\\" std::fs\"; let b = r#\"unsafe\"#;\n\
                      let c = 'u'; let d = '\\''; fn f<'a>(x: &'a str) {} // std::fs\nlet e = b\"unsafe\"; br##\"x\"#\"##;";
        let bare = bare(source);
        assert!(!bare.contains("unsafe") && !bare.contains("fs"), "{bare}");
        assert!(bare.contains("fn f<'a>(x: &'a str) {}"), "{bare}");
        assert_eq!(bare.lines().count(), source.lines().count());
    }

    #[test]
    fn impure_code_is_found_however_it_is_written() {
        let lines = |source: &str| impurities(&bare(source)).len();
        for bad in [
            "use std::fs;",
            "use std::{collections::BTreeMap, fs::File};",
            "let x = ::std::net::TcpStream::connect(a);",
            "use std::time::Instant;",
            "std :: thread::spawn(f)",
            "use std::{\n    fmt,\n    process::{Command, Child},\n};",
            "fn f() { println!(\"{}\", 1) }",
            "use std::time::{Duration, SystemTime};",
            "let seed = std::env::var(\"SEED\");",
        ] {
            assert_eq!(lines(bad), 1, "{bad}");
        }
        for good in [
            "use std::time::Duration;",
            "// std::fs\nuse std::fmt;",
            "use std::{collections::BTreeMap, fmt};",
            "let instant_ms = 3; my_std::fs();",
            "fn a() {}\n#[cfg(test)]\nmod tests { use std::fs; }",
            "include_str!(\"../std::fs\")",
        ] {
            assert_eq!(impurities(&bare(good)), [], "{good}");
        }
    }

    #[test]
    fn unsafe_is_found_as_a_word_of_the_language_only() {
        assert_eq!(
            unsafe_lines(&bare("let unsafe_shutdowns = 1; // unsafe\n\"unsafe\"; fn f() {}")),
            [0usize; 0]
        );
        assert_eq!(unsafe_lines(&bare("\nlet x = unsafe { *p };")), [2]);
        assert_eq!(unsafe_lines(&bare("#![allow(unsafe_code)]")), [1]);
        assert_eq!(unsafe_lines(&bare("#![forbid(unsafe_code)]")), [0usize; 0]);
    }
}
