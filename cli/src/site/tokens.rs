//! `whet tokens reset`: forget which machine a blade is.

use std::process::ExitCode;

use serde_json::json;

use super::access::{Access, checked_blade};
use super::failure::OrExit as _;
use super::{print_json, say, wait_for};
use crate::as_called;

#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Revoke a blade's certificates and end a conflict of identities: it joins again with a new token
    #[command(
        after_help = "After a board was replaced, or when two machines say that they are this blade.\n\n\
                            Example:\n  whet tokens reset b-003 && whet tranche tokens t-07 --serial SN3 --out tokens/"
    )]
    Reset {
        /// Name or serial
        #[arg(value_name = "BLADE")]
        blade: String,
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        access: Access,
    },
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let What::Reset { blade, json, access } = args.what;
    checked_blade(&blade)?;
    wait_for(async {
        let ops = access.connect().await?.ops().await.or_exit()?;
        ops.tell(&format!("/v1/ops/blades/{blade}/reset-identity"), &json!({})).await.or_exit()?;
        if json {
            print_json(&json!({"blade": blade, "reset": true}))?;
        } else {
            let next = as_called("give it a new join token (`whet tranche tokens`)");
            say(&format!("{blade}: its certificates are revoked; {next}\n"))?;
        }
        Ok(ExitCode::SUCCESS)
    })
}
