//! `whet breaker`: how many blades faults may take out of service, and a person's word that more is right.

use std::process::ExitCode;

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::access::Access;
use super::failure::OrExit as _;
use super::{print_json, say, wait_for};
use crate::as_called;

#[derive(clap::Args)]
#[command(
    after_help = "Runbook: docs/playbooks/breaker-open.md\n\nExamples:\n  whet breaker\n  whet breaker override"
)]
pub struct Args {
    #[command(subcommand)]
    what: Option<What>,
    /// The state as a JSON object
    #[arg(long, global = true)]
    json: bool,
    #[command(flatten)]
    access: Access,
}

#[derive(clap::Subcommand, Clone, Copy, PartialEq, Eq)]
enum What {
    /// The faults are real: withhold every faulty blade, however many. Stands until `restore`, or until another operator leads
    Override,
    /// The protection is on again
    Restore,
}

/// As the ops API answers. Counts are blades.
#[derive(Serialize, Deserialize)]
struct State {
    open: bool,
    #[serde(rename = "override")]
    overridden: bool,
    withheld: usize,
    wanted: usize,
    limit: usize,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    wait_for(async {
        let ops = args.access.connect().await?.ops().await.or_exit()?;
        const PATH: &str = "/v1/ops/breaker";
        if let Some(what) = args.what {
            ops.tell(PATH, &json!({ "override": what == What::Override })).await.or_exit()?;
        }
        let state: State = ops.get(PATH).await.or_exit()?;
        if args.json {
            print_json(&state)?
        } else {
            say(&as_called(&sentence(&state)))?
        }
        Ok(ExitCode::SUCCESS)
    })
}

fn sentence(state: &State) -> String {
    let State { open, overridden, withheld, wanted, limit } = state;
    let what = match (overridden, open) {
        (true, _) => "overridden: every faulty blade is withheld",
        (false, true) => {
            "open: it holds back faulty blades until a person looks (`whet cases`, `whet breaker override`)"
        }
        (false, false) => "closed: all is as usual",
    };
    format!(
        "{what}\n{withheld} of {limit} blades are withheld for faults within the window, {wanted} more are to be\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_breaker_says_what_to_do_and_an_override_that_it_stands() {
        let state = |open, overridden| State { open, overridden, withheld: 8, wanted: 4, limit: 8 };
        assert!(sentence(&state(true, false)).contains("whet breaker override"));
        assert!(sentence(&state(true, true)).starts_with("overridden"));
        assert!(sentence(&state(false, false)).contains("8 of 8 blades"));
    }
}
