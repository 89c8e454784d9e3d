//! `whet site down`: ends what is recorded, and nothing else.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use k8s_openapi::api::core::v1::{Namespace, Node, Secret};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, DynamicObject};
use kube::config::Kubeconfig;
use kube::core::GroupVersionKind;
use kube::{Api, discovery};
use serde_json::json;

use super::folder::{Folder, Found, look};
use super::process::{Process, end};
use super::state::{Made, MadeKind, State};
use super::{KUBECONFIG, Place, cluster};
use crate::input_error;
use crate::site::access::{Site, connect};
use crate::site::ops::NAMESPACE;
use crate::site::{print_json, say, wait_for};

#[derive(clap::Args)]
#[command(after_help = "Example:\n  whet site down")]
pub struct Args {
    #[command(flatten)]
    place: Place,
    /// {"dir", "ended": N}
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let dir = args.place.path()?;
    let ended = match look(&dir)? {
        Found::Free => None,
        Found::Strange => {
            return Err(input_error(format!("{}: is no site's folder; it is left alone", dir.display())));
        }
        Found::Site => {
            let folder = Folder::open(&dir)?;
            let state = State::load(&dir)?.unwrap_or_else(|| State::new(&dir, 0));
            let ended = state.living().count();
            wait_for(all(&folder, state))?;
            folder.delete()?;
            Some(ended)
        }
    };
    if args.json {
        print_json(&json!({"dir": dir, "ended": ended.unwrap_or_default()}))?;
    } else {
        match ended {
            None => say(&format!("no site in {}\n", dir.display()))?,
            Some(ended) => say(&format!("{}: {ended} processes ended, nothing is left\n", dir.display()))?,
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Ends processes and cluster, or takes ours out of a cluster that is not. The folder stays if anything does.
pub async fn all(folder: &Folder, state: State) -> anyhow::Result<()> {
    let processes: Vec<Process> = state.processes.iter().map(|recorded| recorded.process).collect();
    let left = end(&folder.dir, &processes);
    if !left.is_empty() {
        let pids: Vec<String> = left.iter().map(|process| process.pid.to_string()).collect();
        bail!("processes that do not end: {}", pids.join(", "));
    }
    if let Some(program) = &state.whet_local {
        return cluster::down(program, &folder.dir).await;
    }
    if state.made.is_empty() {
        return Ok(());
    }
    let kubeconfig = Kubeconfig::read_from(folder.dir.join(KUBECONFIG))?;
    let site = connect(kubeconfig, None, None).await?;
    let mut made = state.made;
    made.sort_by_key(|made| made.kind);
    for made in &made {
        take_away(&site, made).await?;
    }
    gone(&site, &made).await
}

/// Until what was deleted is gone: a namespace and a kind take a moment, and nobody can make them anew meanwhile.
const GONE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(100);

async fn gone(site: &Site, made: &[Made]) -> anyhow::Result<()> {
    let until = tokio::time::Instant::now() + GONE;
    for made in made {
        let name = made.name.as_str();
        loop {
            let there = match made.kind {
                MadeKind::Namespace => {
                    site.all::<Namespace>().get_metadata_opt(name).await.map(|o| o.is_some())
                }
                MadeKind::Crd => {
                    site.all::<CustomResourceDefinition>().get_metadata_opt(name).await.map(|o| o.is_some())
                }
                _ => Ok(false),
            };
            if !there.map_err(|e| site.failure(name, e))? {
                break;
            }
            if tokio::time::Instant::now() > until {
                bail!("{:?} {name} is still there after {} s", made.kind, GONE.as_secs());
            }
            tokio::time::sleep(POLL).await;
        }
    }
    Ok(())
}

/// Deletes one object; fine if it is gone.
async fn take_away(site: &Site, made: &Made) -> anyhow::Result<()> {
    let (name, params) = (made.name.as_str(), DeleteParams::background());
    let result = match made.kind {
        MadeKind::Tranche => site.all::<whetstone_api::Tranche>().delete(name, &params).await.map(drop),
        MadeKind::Blade => site.all::<whetstone_api::Blade>().delete(name, &params).await.map(drop),
        MadeKind::Node => site.all::<Node>().delete(name, &params).await.map(drop),
        MadeKind::Secret => site.namespaced::<Secret>(NAMESPACE).delete(name, &params).await.map(drop),
        MadeKind::Crd => site.all::<CustomResourceDefinition>().delete(name, &params).await.map(drop),
        MadeKind::Namespace => site.all::<Namespace>().delete(name, &params).await.map(drop),
        MadeKind::Policy => {
            // GROUP/VERSION/KIND/NAME
            let parts: Vec<&str> = name.splitn(4, '/').collect();
            let [group, version, kind, name] = parts.as_slice() else {
                bail!("policy {name:?} in state.json")
            };
            match discovery::pinned_kind(&site.client, &GroupVersionKind::gvk(group, version, kind)).await {
                Ok((resource, _)) => {
                    let api: Api<DynamicObject> = Api::all_with(site.client.clone(), &resource);
                    api.delete(name, &params).await.map(drop)
                }
                Err(error) => Err(error),
            }
        }
    };
    match result {
        Ok(()) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(site.failure(&format!("{:?} {name}", made.kind), error).into()),
    }
}
