//! The site verbs as a user runs them, where no site is needed: bad input, folders that are not ours, the kubectl plugin.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    reason = "test helpers: a broken promise is a failed test"
)]

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output};

/// Away from the user's own sites and kubeconfigs.
fn command(program: &Path, home: &Path) -> Command {
    let mut command = Command::new(program);
    for name in ["KUBECONFIG", "WHETSTONE_SITE", "XDG_STATE_HOME"] {
        command.env_remove(name);
    }
    command.env("HOME", home);
    command
}

fn whet(home: &Path, args: &[&str]) -> Output {
    command(Path::new(env!("CARGO_BIN_EXE_whet")), home).args(args).output().unwrap()
}

fn refused(out: &Output, words: &[&str]) {
    let text = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(2), "{out:?}");
    assert!(out.stdout.is_empty(), "{out:?}");
    for word in words {
        assert!(text.contains(word), "{word:?} is not in: {text}");
    }
}

#[test]
fn a_bad_manifest_is_told_line_by_line_before_any_cluster_is_asked() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("t.csv");
    std::fs::write(&file, "serial,name\nSN1,b-001\nSN1,b-002\nSN 3,b-003\n").unwrap();
    let file = file.to_str().unwrap();
    refused(
        &whet(dir.path(), &["tranche", "create", "t-07", "--manifest", file]),
        &["nothing was made", "t.csv:3: serial SN1 stands in line 2 already", "t.csv:4: serial \"SN 3\""],
    );
    refused(&whet(dir.path(), &["tranche", "create", "T 7", "--manifest", file]), &["tranche name"]);
    refused(
        &whet(dir.path(), &["tranche", "create", "t-07", "--manifest", "/no/such.yaml"]),
        &["/no/such.yaml:1: "],
    );
}

#[test]
fn watts_below_one_blades_and_a_suite_that_is_none_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("t.yaml");
    std::fs::write(&file, "- serial: SN1\n").unwrap();
    let create = |more: &[&str]| {
        let args = [&["tranche", "create", "t-07", "--manifest", file.to_str().unwrap()], more].concat();
        whet(dir.path(), &args)
    };
    refused(&create(&["--blade-watts", "10200", "--rack-watts", "10000"]), &["--rack-watts 10000"]);
    refused(&create(&["--rack-watts", "10000"]), &["--blade-watts"]);
    refused(&create(&["--suite", "quickest"]), &["quick, standard, soak"]);
    refused(&create(&["--owner", "nobody"]), &["--owner nobody"]);
    refused(&create(&["--suite-file", file.to_str().unwrap()]), &["t.yaml"]);
    // All is well with it: only the site is missing.
    refused(&create(&[]), &["no kubeconfig", "--site"]);
}

fn kubeconfig(dir: &Path, port: u16) -> String {
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
         clusters: [{{name: c, cluster: {{server: 'http://127.0.0.1:{port}'}}}}]\n\
         contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\nusers: [{{name: u, user: {{}}}}]\n"
    );
    let file = dir.join("config");
    std::fs::write(&file, text).unwrap();
    file.to_str().unwrap().to_owned()
}

/// The port of an apiserver that refuses whatever is asked, with these words.
fn refusing(words: &str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let body = serde_json::json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": words, "reason": "Forbidden", "code": 403,
    })
    .to_string();
    let answer = format!(
        "HTTP/1.1 403 Forbidden\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let head = BufReader::new(&stream).lines().map_while(Result::ok);
            head.take_while(|line| !line.is_empty()).for_each(drop);
            (&stream).write_all(answer.as_bytes()).unwrap();
        }
    });
    port
}

#[test]
fn what_the_apiserver_refuses_is_exit_code_2_and_its_words_move_no_cursor() {
    let dir = tempfile::tempdir().unwrap();
    let config = kubeconfig(dir.path(), refusing("blades is forbidden:\u{1b}[2J\u{9b}H to ann"));
    for verb in [&["blades"] as &[&str], &["blades", "--watch"], &["tranche", "list"], &["retire", "b-1"]] {
        let out = whet(dir.path(), &[verb, &["--kubeconfig", &config]].concat());
        refused(&out, &["whet: apiserver http://127.0.0.1:", "blades is forbidden: [2J H to ann\n"]);
    }
}

#[test]
fn a_site_that_cannot_be_reached_is_an_error_in_seconds_and_names_the_server() {
    let dir = tempfile::tempdir().unwrap();
    // Port 1: nobody listens there.
    let config = kubeconfig(dir.path(), 1);
    for verb in [&["blades"] as &[&str], &["blades", "--watch"], &["tranche", "list"], &["explain", "b-1"]] {
        let out = whet(dir.path(), &[verb, &["--kubeconfig", &config]].concat());
        assert_eq!(out.status.code(), Some(1), "{out:?}");
        assert!(String::from_utf8_lossy(&out.stderr).contains("http://127.0.0.1:1: "), "{out:?}");
    }
}

#[test]
fn a_blade_that_is_no_name_and_a_reason_of_two_lines_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    refused(&whet(dir.path(), &["explain", "b 1"]), &["neither a blade's name nor a serial"]);
    refused(&whet(dir.path(), &["quarantine", "b-1", "--reason", "a\nb"]), &["--reason: one line"]);
    refused(&whet(dir.path(), &["release", "../b"]), &["neither"]);
}

#[test]
fn the_plugin_has_the_verbs_of_a_site_alone_and_says_how_it_is_called() {
    let dir = tempfile::tempdir().unwrap();
    let plugin = dir.path().join("kubectl-whet");
    symlink(env!("CARGO_BIN_EXE_whet"), &plugin).unwrap();
    let run = |args: &[&str]| command(&plugin, dir.path()).args(args).output().unwrap();
    let help = run(&["--help"]);
    let text = String::from_utf8_lossy(&help.stdout).into_owned();
    assert!(help.status.success() && text.contains("Usage: kubectl whet"), "{text}");
    assert!(text.contains("explain") && !text.contains("burnin ") && !text.contains("probe"), "{text}");
    let help = run(&["tranche", "create", "--help"]);
    assert!(
        String::from_utf8_lossy(&help.stdout).contains("\n  kubectl whet tranche create t-07"),
        "{help:?}"
    );
    refused(&run(&["probe"]), &["unrecognized subcommand 'probe'"]);
    refused(&run(&["blades"]), &["kubectl whet: no kubeconfig"]);
}

#[test]
fn a_folder_that_is_no_sites_is_left_alone_and_no_site_is_no_trouble() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("thesis.txt"), "years of work").unwrap();
    let place = dir.path().to_str().unwrap();
    for verb in ["up", "down"] {
        refused(&whet(dir.path(), &["site", verb, "--dir", place]), &[place]);
    }
    assert!(dir.path().join("thesis.txt").is_file());
    let none = dir.path().join("none");
    let down = whet(dir.path(), &["site", "down", "--json", "--dir", none.to_str().unwrap()]);
    assert!(down.status.success() && !none.exists(), "{down:?}");
    let status = whet(dir.path(), &["site", "status", "--json", "--dir", none.to_str().unwrap()]);
    assert_eq!(status.status.code(), Some(1), "{status:?}");
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&status.stdout).unwrap()["running"], false);
}

#[test]
fn a_program_that_is_missing_is_named_before_anything_is_made() {
    let dir = tempfile::tempdir().unwrap();
    // Beside a copy of the program there is nothing.
    let alone = dir.path().join("bin/whet");
    std::fs::create_dir(dir.path().join("bin")).unwrap();
    std::fs::copy(env!("CARGO_BIN_EXE_whet"), &alone).unwrap();
    let site = dir.path().join("site");
    let out = command(&alone, dir.path())
        .env("PATH", "/nowhere")
        .args(["site", "up", "--dir", site.to_str().unwrap()])
        .output()
        .unwrap();
    refused(&out, &["whet-sim is missing", "--bin DIR"]);
    assert!(!site.exists());
}
