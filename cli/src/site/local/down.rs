//! `whet site down`: ends what is recorded, and nothing else.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Namespace, Node, Secret};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, DynamicObject, ListParams, Preconditions};
use kube::config::Kubeconfig;
use kube::core::{GroupVersionKind, PartialObjectMeta};
use kube::discovery::ApiResource;
use kube::{Api, ResourceExt as _, discovery};
use serde_json::json;
use whetstone_api::BurnIn;

use super::folder::{Folder, Found, look};
use super::objects::SITE;
use super::process::{Process, end};
use super::state::{Blade, Made, MadeKind, State};
use super::{KUBECONFIG, Place, cluster, others};
use crate::input_error;
use crate::site::access::{Site, connect};
use crate::site::failure::Failure;
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
    take_away(&site, state).await
}

/// Until what was deleted is gone: a namespace and a kind take a moment, and nobody can make them anew meanwhile.
const GONE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(100);

/// Deletes what is ours, in the order in which nothing makes it anew.
async fn take_away(site: &Site, mut state: State) -> anyhow::Result<()> {
    if blades_are_ours(site, &state).await? {
        of_blades(site, &state.blades).await?;
        // Once: as soon as our tranche is gone another site may come, with blades of the same serials.
        state.change(|state| state.made.retain(|made| made.kind != MadeKind::Blade))?;
    }
    let mut made = std::mem::take(&mut state.made);
    made.sort_by_key(|made| made.kind);
    let mut deleted = Vec::new();
    for made in made.iter().filter(|made| made.kind != MadeKind::Blade) {
        let Some(api) = api_of(site, made).await? else { continue };
        let Some(uid) = ours(site, &api, made.object(), &state.id).await? else { continue };
        // It would take along what is in it.
        let theirs = match made.kind {
            MadeKind::Crd => others::of_our_kinds(site).await?,
            MadeKind::Namespace => others::in_our_namespace(site, &state.id).await?,
            _ => None,
        };
        if let Some(theirs) = theirs {
            eprintln!("{} {} stays: {theirs} is there, and not this site's", made.kind.word(), made.object());
            continue;
        }
        if delete(site, &api, made.object(), uid).await? {
            deleted.push((api, made));
        }
    }
    let until = tokio::time::Instant::now() + GONE;
    for (api, made) in deleted {
        if !matches!(made.kind, MadeKind::Namespace | MadeKind::Crd) {
            continue;
        }
        let what = format!("{} {}", made.kind.word(), made.object());
        while let Some(there) = look_at(site, &api, made.object()).await? {
            if there.labels().get(SITE) != Some(&state.id) {
                break;
            }
            if tokio::time::Instant::now() > until {
                bail!("{what} is still there after {} s", GONE.as_secs());
            }
            tokio::time::sleep(POLL).await;
        }
    }
    Ok(())
}

/// Blades and runs are made by the operator, and have no label of the site's. There was none before, and who made the
/// tranche has them: recorded once it was made, else seen by the tranche's label.
async fn blades_are_ours(site: &Site, state: &State) -> anyhow::Result<bool> {
    if state.made.iter().any(|made| made.kind == MadeKind::Blade) {
        return Ok(true);
    }
    let Some(tranche) = state.made.iter().find(|made| made.kind == MadeKind::Tranche) else {
        return Ok(false);
    };
    let Some(api) = api_of(site, tranche).await? else { return Ok(false) };
    let there = look_at(site, &api, tranche.object()).await?;
    Ok(there.is_some_and(|there| there.labels().get(SITE) == Some(&state.id)))
}

/// The site's blades by their serials, whatever they are called by now, and their runs.
async fn of_blades(site: &Site, blades: &[Blade]) -> anyhow::Result<()> {
    let there: Vec<whetstone_api::Blade> = known(site.list(ListParams::default()).await)?;
    let ours = |serial: &str| blades.iter().any(|blade| blade.serial == serial);
    let there: Vec<String> =
        there.iter().filter(|there| ours(&there.spec.serial)).map(|blade| blade.name_any()).collect();
    let mut names: BTreeSet<&str> = blades.iter().map(|blade| blade.name.as_str()).collect();
    names.extend(there.iter().map(String::as_str));
    let runs: Vec<BurnIn> = known(site.list(ListParams::default()).await)?;
    for run in runs.iter().filter(|run| names.contains(run.spec.blade.as_str())) {
        let name = run.name_any();
        fine(site, site.all::<BurnIn>().delete(&name, &DeleteParams::background()).await, &name)?;
    }
    for name in &there {
        let api = site.all::<whetstone_api::Blade>();
        fine(site, api.delete(name, &DeleteParams::background()).await, name)?;
    }
    Ok(())
}

/// What is gone already need not be deleted.
fn fine<T>(site: &Site, result: Result<T, kube::Error>, what: &str) -> Result<(), Failure> {
    match result {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        result => result.map(drop).map_err(|e| site.failure(what, e)),
    }
}

/// Nothing where the kind is gone already.
fn known<T>(found: Result<Vec<T>, Failure>) -> Result<Vec<T>, Failure> {
    match found {
        Err(Failure::Refused(_)) => Ok(Vec::new()),
        found => found,
    }
}

/// Where an object is; `None` if the cluster does not know its kind any more.
async fn api_of(site: &Site, made: &Made) -> anyhow::Result<Option<Api<DynamicObject>>> {
    let all = |resource: &ApiResource| Api::all_with(site.client.clone(), resource);
    let inside = |resource: &ApiResource| Api::namespaced_with(site.client.clone(), NAMESPACE, resource);
    Ok(Some(match made.kind {
        MadeKind::Tranche => all(&ApiResource::erase::<whetstone_api::Tranche>(&())),
        MadeKind::Blade => all(&ApiResource::erase::<whetstone_api::Blade>(&())),
        MadeKind::Node => all(&ApiResource::erase::<Node>(&())),
        MadeKind::Crd => all(&ApiResource::erase::<CustomResourceDefinition>(&())),
        MadeKind::Namespace => all(&ApiResource::erase::<Namespace>(&())),
        MadeKind::Lease => inside(&ApiResource::erase::<Lease>(&())),
        MadeKind::Secret => inside(&ApiResource::erase::<Secret>(&())),
        MadeKind::Policy => {
            let parts: Vec<&str> = made.name.splitn(4, '/').collect();
            let [group, version, kind, _] = parts.as_slice() else {
                bail!("policy {:?} in state.json", made.name)
            };
            match discovery::pinned_kind(&site.client, &GroupVersionKind::gvk(group, version, kind)).await {
                Ok((resource, _)) => all(&resource),
                // Noted only where it was served.
                Err(kube::Error::Discovery(_)) => return Ok(None),
                Err(kube::Error::Api(status)) if status.code == 404 => return Ok(None),
                Err(error) => return Err(site.failure(&made.name, error).into()),
            }
        }
    }))
}

async fn look_at(
    site: &Site,
    api: &Api<DynamicObject>,
    name: &str,
) -> anyhow::Result<Option<PartialObjectMeta<DynamicObject>>> {
    Ok(api.get_metadata_opt(name).await.map_err(|e| site.failure(name, e))?)
}

/// The uid of an object if it has the site's label.
async fn ours(site: &Site, api: &Api<DynamicObject>, name: &str, id: &str) -> anyhow::Result<Option<String>> {
    let there = look_at(site, api, name).await?;
    let ours =
        there.filter(|there| !id.is_empty() && there.labels().get(SITE).is_some_and(|label| label == id));
    Ok(ours.and_then(|ours| ours.uid()))
}

/// Deletes the object that has this uid; whether it was still there.
async fn delete(site: &Site, api: &Api<DynamicObject>, name: &str, uid: String) -> anyhow::Result<bool> {
    let same = Preconditions { uid: Some(uid), resource_version: None };
    match api.delete(name, &DeleteParams::background().preconditions(same)).await {
        Ok(_) => Ok(true),
        // Gone meanwhile, or another one of that name.
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(false),
        Err(error) => Err(site.failure(name, error).into()),
    }
}
