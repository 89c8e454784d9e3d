//! `whet tranche`: deliveries.

mod create;
pub mod manifest;
mod report;
mod show;
mod tokens;
mod watch;

use std::process::ExitCode;

use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::json;
use whetstone_api::Tranche;
use whetstone_model::ids::TrancheName;

pub use create::suite;
pub use tokens::{Token, issue, secret_file};

use super::access::{Access, Site};
use super::failure::OrExit as _;
use super::{print_json, say, wait_for};
use crate::input_error;

#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
    #[command(flatten)]
    access: Access,
}

#[derive(clap::Subcommand)]
enum What {
    /// Make one from a list of serials
    Create(create::Args),
    /// All of them
    List {
        /// A JSON array
        #[arg(long)]
        json: bool,
    },
    /// One, with its missing, duplicate and withheld blades
    Show {
        #[arg(value_name = "NAME")]
        name: String,
        #[arg(long)]
        json: bool,
    },
    /// Say what changes until all of it is decided
    Watch(watch::Args),
    /// Start no further burn-in; those that go on go on
    Pause(One),
    /// Go on
    Resume(One),
    /// Take the object away; its blades stay, with their history, or go over to another tranche that lists them
    Delete(One),
    /// Issue join tokens, one for each blade
    Tokens(tokens::Args),
    /// Write the signed acceptance report: yield, distributions, returns with their evidence
    Report(report::Args),
}

#[derive(clap::Args)]
struct One {
    #[arg(value_name = "NAME")]
    name: String,
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let access = args.access;
    match args.what {
        What::Create(args) => create::run(args, &access),
        What::List { json } => show::list(json, &access),
        What::Show { name, json } => show::one(&name, json, &access),
        What::Watch(args) => watch::run(args, &access),
        What::Pause(one) => pause(&one, true, &access),
        What::Resume(one) => pause(&one, false, &access),
        What::Delete(one) => delete(&one, &access),
        What::Tokens(args) => tokens::run(args, &access),
        What::Report(args) => report::run(args, &access),
    }
}

/// A tranche's name from the command line.
fn checked(name: &str) -> anyhow::Result<&str> {
    TrancheName::new(name).map_err(input_error)?;
    Ok(name)
}

fn text(name: &str) -> String {
    format!("tranche {name}")
}

async fn find(site: &Site, name: &str) -> anyhow::Result<Tranche> {
    site.all::<Tranche>().get(name).await.map_err(|e| site.failure(&text(name), e)).or_exit()
}

fn pause(one: &One, paused: bool, access: &Access) -> anyhow::Result<ExitCode> {
    let name = checked(&one.name)?;
    wait_for(async {
        let site = access.connect().await?;
        let params = PatchParams { field_manager: Some("whet".into()), ..PatchParams::default() };
        let patch = Patch::Merge(json!({"spec": {"paused": paused}}));
        site.all::<Tranche>()
            .patch(name, &params, &patch)
            .await
            .map_err(|e| site.failure(&text(name), e))
            .or_exit()?;
        if one.json {
            print_json(&json!({"tranche": name, "paused": paused}))?;
        } else {
            let what = if paused { "paused: no further burn-in is started" } else { "goes on" };
            say(&format!("{name}: {what}\n"))?;
        }
        Ok(ExitCode::SUCCESS)
    })
}

fn delete(one: &One, access: &Access) -> anyhow::Result<ExitCode> {
    let name = checked(&one.name)?;
    wait_for(async {
        let site = access.connect().await?;
        site.all::<Tranche>()
            .delete(name, &DeleteParams::default())
            .await
            .map_err(|e| site.failure(&text(name), e))
            .or_exit()?;
        if one.json {
            print_json(&json!({"tranche": name, "deleted": true}))?;
        } else {
            say(&format!(
                "{name}: deleted; its blades stay, with their history, or go over to another tranche that lists them\n"
            ))?;
        }
        Ok(ExitCode::SUCCESS)
    })
}
