//! `whet tranche tokens`: one-time join tokens, each for one serial.

use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use serde_json::json;
use whetstone_model::ids::Serial;

use super::{checked, find};
use crate::input_error;
use crate::site::access::Access;
use crate::site::failure::{Failure, OrExit as _};
use crate::site::ops::Ops;
use crate::site::{print_json, say, wait_for};

#[derive(clap::Args)]
#[command(
    after_help = "DIR gets one file per blade, named by its serial; FILE.csv gets serial,token,expires. Only you can read them:\n\
    a token is all that a machine needs to become that blade, once. The operator keeps no copy.\n\n\
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
    /// Print {"written": N, "out", "expires_ms"}; never the tokens themselves
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
        let body = json!({"serials": part, "ttl_s": ttl.as_secs()});
        tokens.extend(ops.post::<Vec<Token>>("/v1/ops/tokens", &body).await?);
    }
    Ok(tokens)
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
        // Before anything is issued: tokens that cannot be written are lost.
        let sink = Sink::open(&args.out)?;
        let ops = site.ops().await.or_exit()?;
        let tokens = issue(&ops, &wanted, args.ttl).await.or_exit()?;
        sink.write(&tokens)?;
        let expires_ms = tokens.iter().map(|token| token.expires_ms).min();
        if args.json {
            print_json(&json!({"written": tokens.len(), "out": args.out, "expires_ms": expires_ms}))?;
        } else {
            say(&format!("{} tokens in {}\n", tokens.len(), args.out.display()))?;
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// Where tokens go.
enum Sink {
    Folder(PathBuf),
    File(PathBuf),
}

impl Sink {
    fn open(out: &Path) -> anyhow::Result<Sink> {
        let bad = |e: std::io::Error| input_error(format!("{}: {e}", out.display()));
        if out.extension().is_some_and(|ending| ending == "csv") {
            let folder = out.parent().filter(|folder| !folder.as_os_str().is_empty());
            if folder.is_some_and(|folder| !folder.is_dir()) {
                return Err(input_error(format!("{}: no such folder", out.display())));
            }
            secret_file(out, b"").map_err(bad)?;
            return Ok(Sink::File(out.to_owned()));
        }
        if !out.is_dir() {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(out).map_err(bad)?;
        }
        Ok(Sink::Folder(out.to_owned()))
    }

    fn write(&self, tokens: &[Token]) -> anyhow::Result<()> {
        match self {
            Sink::Folder(folder) => {
                for token in tokens {
                    // It becomes a file's name.
                    let serial = Serial::new(token.serial.as_str()).context("the operator's answer")?;
                    let path = folder.join(serial.as_str());
                    secret_file(&path, format!("{}\n", token.token).as_bytes())
                        .with_context(|| path.display().to_string())?;
                }
            }
            Sink::File(path) => {
                let mut writer = csv::Writer::from_writer(Vec::new());
                writer.write_record(["serial", "token", "expires"])?;
                for token in tokens {
                    let expires = jiff::Timestamp::from_millisecond(token.expires_ms)?.to_string();
                    writer.write_record([&token.serial, &token.token, &expires])?;
                }
                let bytes = writer.into_inner().map_err(|e| e.into_error())?;
                secret_file(path, &bytes).with_context(|| path.display().to_string())?;
            }
        }
        Ok(())
    }
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

    #[test]
    fn tokens_are_written_for_their_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = [Token { serial: "SN.1".into(), token: "wt-a".into(), expires_ms: 0 }];
        let folder = dir.path().join("tokens");
        Sink::open(&folder).unwrap().write(&tokens).unwrap();
        let file = dir.path().join("t.csv");
        std::fs::write(&file, "old and open").unwrap();
        Sink::open(&file).unwrap().write(&tokens).unwrap();
        assert_eq!(std::fs::read_to_string(folder.join("SN.1")).unwrap(), "wt-a\n");
        assert_eq!(
            std::fs::read_to_string(&file).unwrap(),
            "serial,token,expires\nSN.1,wt-a,1970-01-01T00:00:00Z\n"
        );
        for path in [folder.join("SN.1"), file] {
            assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
        }
        assert_eq!(std::fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
        let evil = [Token { serial: "../x".into(), token: "wt-a".into(), expires_ms: 0 }];
        assert!(Sink::open(&folder).unwrap().write(&evil).is_err());
        assert!(Sink::open(&dir.path().join("no/t.csv")).is_err());
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
