//! `whet tranche tokens`: one-time join tokens, each for one serial.

use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use rustix::fs;
use serde::{Deserialize, Serialize};
use serde_json::json;
use whetstone_model::ids::Serial;

use super::{checked, find, text};
use crate::site::access::Access;
use crate::site::failure::{Failure, OrExit as _};
use crate::site::ops::Ops;
use crate::site::{print_json, say, wait_for};
use crate::{complain, input_error};

#[derive(clap::Args)]
#[command(
    after_help = "DIR gets one file per blade, named by its serial; FILE.csv gets serial,token,expires. Only you can read them:\n\
    a token is all that a machine needs to become that blade, once. The operator keeps no copy. A blade that the site has\n\
    not entered (its name is another's) gets none: the others do, it is named, and the exit code is 1.\n\n\
    Example:\n  whet tranche tokens t-07 --ttl 72h --out tokens/"
)]
pub struct Args {
    #[arg(value_name = "NAME")]
    name: String,
    /// Only for this serial; may be repeated
    #[arg(long = "serial", value_name = "S")]
    serials: Vec<String>,
    /// How long they can be used: 30m, 72h, 14d
    #[arg(long, value_name = "TIME", default_value = "168h", value_parser = duration)]
    ttl: Duration,
    /// Folder, or a file that ends in .csv
    #[arg(long, value_name = "DIR|FILE.csv")]
    out: PathBuf,
    /// Print {"written": N, "out", "expires_ms", "not_entered": [SERIAL]}; never the tokens themselves
    #[arg(long)]
    json: bool,
}

/// As the ops API answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Token {
    pub serial: String,
    pub token: String,
    pub expires_ms: i64,
}

/// Serials in one call, as the operator allows.
const PER_CALL: usize = 1_000;
/// As the operator allows, too.
const MAX_TTL: Duration = Duration::from_secs(90 * 86_400);

/// `30s`, `30m`, `72h`, `14d`; at least a second.
pub fn duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?}: a whole number with s, m, h or d");
    let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| bad())?;
    let each = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(bad()),
    };
    let seconds = number.checked_mul(each).filter(|seconds| (1..=10 * 366 * 86_400).contains(seconds));
    seconds.map(Duration::from_secs).ok_or_else(|| format!("{text:?}: a second to ten years"))
}

/// Asks for tokens, in as many calls as it takes.
pub async fn issue(ops: &Ops, serials: &[String], ttl: Duration) -> Result<Vec<Token>, Failure> {
    let mut tokens = Vec::with_capacity(serials.len());
    for part in serials.chunks(PER_CALL) {
        tokens.extend(ask(ops, part, ttl).await?);
    }
    Ok(tokens)
}

/// One call: a token for each of them, or none at all.
async fn ask(ops: &Ops, serials: &[String], ttl: Duration) -> Result<Vec<Token>, Failure> {
    ops.post("/v1/ops/tokens", &json!({"serials": serials, "ttl_s": ttl.as_secs()})).await
}

pub fn run(args: Args, access: &Access) -> anyhow::Result<ExitCode> {
    let name = checked(&args.name)?;
    if args.ttl > MAX_TTL {
        return Err(input_error("--ttl: at most 90d"));
    }
    wait_for(async {
        let site = access.connect().await?;
        let tranche = find(&site, name).await?;
        let all = tranche.spec.blades.into_iter().map(|blade| blade.serial);
        let wanted: Vec<String> = if args.serials.is_empty() {
            all.collect()
        } else {
            let all: std::collections::HashSet<String> = all.collect();
            let strange: Vec<&str> =
                args.serials.iter().filter(|serial| !all.contains(*serial)).map(String::as_str).collect();
            if !strange.is_empty() {
                return Err(input_error(format!("not on {name}: {}", strange.join(", "))));
            }
            args.serials.clone()
        };
        if wanted.is_empty() {
            return Err(input_error(format!("{} lists no blades", text(name))));
        }
        // Before anything is issued: tokens that cannot be written are lost.
        let sink = Sink::open(&args.out)?;
        let ops = site.ops().await.or_exit()?;
        let done =
            deliver(async |serials: &[String]| ask(&ops, serials, args.ttl).await, &wanted, sink).await?;
        if done.written == 0 {
            let what = format!("none of the {} serials is entered (yet)", done.unknown.len());
            return Err(input_error(format!("{}: {what}; no token was issued", text(name))));
        }
        if args.json {
            print_json(&json!({
                "written": done.written, "out": args.out, "expires_ms": done.expires_ms, "not_entered": done.unknown,
            }))?;
        } else {
            say(&format!("{} tokens in {}\n", done.written, args.out.display()))?;
        }
        if done.unknown.is_empty() {
            return Ok(ExitCode::SUCCESS);
        }
        let (count, serials) = (done.unknown.len(), done.unknown.join(", "));
        complain(format_args!(
            "{count} of the serials are not entered and got no token: {serials} (`kubectl describe {}` says why)",
            text(name)
        ));
        Ok(ExitCode::FAILURE)
    })
}

/// What has come of a call for tokens.
#[derive(Debug, Default, PartialEq)]
struct Done {
    written: usize,
    /// When the first of them ends.
    expires_ms: Option<i64>,
    /// Serials that the site has not entered: they get none.
    unknown: Vec<String>,
}

/// Asks and writes, call by call: tokens that the operator has made are in nobody's hands but ours.
async fn deliver(
    ask: impl AsyncFn(&[String]) -> Result<Vec<Token>, Failure>,
    wanted: &[String],
    mut sink: Sink,
) -> anyhow::Result<Done> {
    let mut done = Done::default();
    for part in wanted.chunks(PER_CALL) {
        let tokens = match entered(&ask, part, &mut done.unknown).await {
            Ok(tokens) => tokens,
            // Not as `into_error` has it: something was done.
            Err(failure) if done.written > 0 => {
                let what =
                    format!("{} tokens are written, {} are not", done.written, wanted.len() - done.written);
                return Err(anyhow::Error::from(failure).context(what));
            }
            Err(failure) => return Err(failure.into_error()),
        };
        done.written += tokens.len();
        done.expires_ms = tokens.iter().map(|token| token.expires_ms).chain(done.expires_ms).min();
        sink.write(tokens)?;
    }
    Ok(done)
}

/// Tokens of those that the site has entered; the others are added to `unknown`.
async fn entered(
    ask: &impl AsyncFn(&[String]) -> Result<Vec<Token>, Failure>,
    serials: &[String],
    unknown: &mut Vec<String>,
) -> Result<Vec<Token>, Failure> {
    let strange = match ask(serials).await {
        Err(Failure::Operator { unknown, .. }) if !unknown.is_empty() => unknown,
        other => return other,
    };
    let (known, others): (Vec<String>, Vec<String>) =
        serials.iter().cloned().partition(|serial| !strange.iter().any(|other| other.as_str() == serial));
    unknown.extend(others);
    if known.is_empty() { Ok(Vec::new()) } else { ask(&known).await }
}

/// Where tokens go.
enum Sink {
    Folder(PathBuf),
    /// With all that it is to hold by now.
    File(PathBuf, Vec<Token>),
}

impl Sink {
    /// Looks whether the place can be written. What lies there already stays until there are tokens.
    fn open(out: &Path) -> anyhow::Result<Sink> {
        let bad = |what: &dyn std::fmt::Display| input_error(format!("{}: {what}", out.display()));
        let is_file = out.extension().is_some_and(|ending| ending == "csv");
        if is_file && out.is_dir() {
            return Err(bad(&"is a folder"));
        }
        let full = std::path::absolute(out).map_err(|e| bad(&e))?;
        // Folders are made, but not that of a file.
        let place = if is_file { full.parent() } else { full.ancestors().find(|place| place.exists()) };
        let place = place.filter(|place| place.is_dir()).ok_or_else(|| bad(&"no such folder"))?;
        fs::access(place, fs::Access::WRITE_OK | fs::Access::EXEC_OK).map_err(|e| bad(&e))?;
        Ok(if is_file { Sink::File(out.to_owned(), Vec::new()) } else { Sink::Folder(out.to_owned()) })
    }

    fn write(&mut self, tokens: Vec<Token>) -> anyhow::Result<()> {
        if tokens.is_empty() {
            return Ok(());
        }
        match self {
            Sink::Folder(folder) => {
                let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder);
                made.with_context(|| folder.display().to_string())?;
                for token in tokens {
                    // It becomes a file's name.
                    let serial = Serial::new(token.serial.as_str()).context("the operator's answer")?;
                    let path = folder.join(serial.as_str());
                    secret_file(&path, format!("{}\n", token.token).as_bytes())
                        .with_context(|| path.display().to_string())?;
                }
            }
            Sink::File(path, all) => {
                all.extend(tokens);
                secret_file(path, &csv(all)?).with_context(|| path.display().to_string())?;
            }
        }
        Ok(())
    }
}

fn csv(tokens: &[Token]) -> anyhow::Result<Vec<u8>> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(["serial", "token", "expires"])?;
    for token in tokens {
        let expires = jiff::Timestamp::from_millisecond(token.expires_ms)?.to_string();
        writer.write_record([&token.serial, &token.token, &expires])?;
    }
    Ok(writer.into_inner().map_err(|e| e.into_error())?)
}

/// A file that its owner alone reads, from its first byte on. What was there is replaced.
pub fn secret_file(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let partial = path.with_added_extension("partial");
    let _ = std::fs::remove_file(&partial);
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&partial)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&partial, path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn token(serial: &str) -> Token {
        Token { serial: serial.into(), token: "wt-a".into(), expires_ms: 0 }
    }

    #[test]
    fn tokens_are_written_for_their_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("new/tokens");
        Sink::open(&folder).unwrap().write(vec![token("SN.1")]).unwrap();
        let file = dir.path().join("t.csv");
        std::fs::write(&file, "old and open").unwrap();
        let mut sink = Sink::open(&file).unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "old and open");
        let head = "serial,token,expires\n";
        let line = |serial: &str| format!("{serial},wt-a,1970-01-01T00:00:00Z\n");
        for (serial, text) in [
            ("SN.1", head.to_owned() + &line("SN.1")),
            ("SN.2", head.to_owned() + &line("SN.1") + &line("SN.2")),
        ] {
            sink.write(vec![token(serial)]).unwrap();
            assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
        }
        assert_eq!(std::fs::read_to_string(folder.join("SN.1")).unwrap(), "wt-a\n");
        for path in [folder.join("SN.1"), file] {
            assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
        }
        assert_eq!(std::fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
        assert!(Sink::open(&folder).unwrap().write(vec![token("../x")]).is_err());
    }

    #[test]
    fn a_place_that_cannot_be_written_is_refused_and_nothing_is_made_there() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "mine").unwrap();
        std::fs::create_dir(dir.path().join("d.csv")).unwrap();
        for bad in ["no/t.csv", "d.csv", "file", "file/tokens", "file/t.csv"] {
            let error = Sink::open(&dir.path().join(bad)).err().unwrap();
            assert!(error.is::<crate::InputError>() && error.to_string().contains(bad), "{error}");
        }
        Sink::open(&dir.path().join("a/b")).unwrap();
        Sink::open(&dir.path().join("t.csv")).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
        assert_eq!(std::fs::read_to_string(file).unwrap(), "mine");
    }

    fn refused(status: u16, unknown: &[&str]) -> Failure {
        let unknown = unknown.iter().map(|serial| Serial::new(*serial).unwrap()).collect();
        Failure::Operator { status, code: "c".into(), message: "m".into(), unknown }
    }

    /// Asks an operator that knows every serial but those with an `x`, and is away for good after some calls.
    fn delivered(wanted: &[String], calls: usize, out: &Path) -> anyhow::Result<Done> {
        let left = std::cell::Cell::new(calls);
        let ask = async |serials: &[String]| {
            if left.replace(left.get().saturating_sub(1)) == 0 {
                return Err(refused(503, &[]));
            }
            match serials.iter().map(String::as_str).filter(|serial| serial.contains('x')).collect::<Vec<_>>()
            {
                unknown if unknown.is_empty() => Ok(serials.iter().map(|serial| token(serial)).collect()),
                unknown => Err(refused(404, &unknown)),
            }
        };
        wait_for(deliver(ask, wanted, Sink::open(out)?))
    }

    #[test]
    fn a_serial_that_is_not_entered_keeps_no_other_blade_from_its_token() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("tokens");
        let wanted = ["a", "x1", "b", "x2"].map(String::from);
        let done = delivered(&wanted, 2, &out).unwrap();
        assert_eq!(done, Done { written: 2, expires_ms: Some(0), unknown: vec!["x1".into(), "x2".into()] });
        assert!(out.join("a").is_file() && out.join("b").is_file());
        // None of them: nothing is made.
        let out = dir.path().join("none");
        let done = delivered(&["x1".to_owned()], 1, &out).unwrap();
        assert!(done.written == 0 && !out.exists(), "{done:?}");
    }

    #[test]
    fn what_was_issued_is_kept_when_a_later_call_fails() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("t.csv");
        let wanted: Vec<String> = (0..PER_CALL + 5).map(|number| format!("s{number}")).collect();
        let error = delivered(&wanted, 1, &out).unwrap_err();
        // Something was done: not as wrong input.
        assert!(!error.is::<crate::InputError>(), "{error:#}");
        assert!(
            format!("{error:#}").starts_with("1000 tokens are written, 5 are not: operator"),
            "{error:#}"
        );
        assert_eq!(std::fs::read_to_string(&out).unwrap().lines().count(), 1 + PER_CALL);
        std::fs::write(&out, "of yesterday").unwrap();
        assert!(delivered(&wanted, 0, &out).is_err());
        assert_eq!(std::fs::read_to_string(&out).unwrap(), "of yesterday");
    }

    #[test]
    fn durations_have_a_unit_and_a_bound() {
        assert_eq!(duration("168h"), Ok(Duration::from_secs(168 * 3600)));
        assert_eq!(duration("2d"), Ok(Duration::from_secs(172_800)));
        for bad in ["", "5", "h", "-1h", "0s", "1w", "99999999999999999999d", "9999999d", "1.5h"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
