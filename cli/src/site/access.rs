//! How a site is reached: its kubeconfig.

use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::NamespaceResourceScope;
use kube::api::ListParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config, Resource};
use serde::de::DeserializeOwned;
use whetstone_api::Blade;

use super::failure::{Failure, OrExit};
use super::local;
use super::ops::Ops;
use crate::{input_error, is_plugin};

/// To connect. A site's apiserver answers in milliseconds, a distant one within a second.
const CONNECT: Duration = Duration::from_secs(5);
/// Objects asked for at once.
const PAGE: u32 = 500;
/// Objects of one kind at most: ten times the largest site in sight.
const MAX_OBJECTS: usize = 1_000_000;

/// Which site. Without any of it: `$KUBECONFIG`, then `$WHETSTONE_SITE`, then the site that `whet site up` made, then
/// `~/.kube/config`.
#[derive(clap::Args, Debug, Clone, Default)]
#[command(next_help_heading = "Which site")]
pub struct Access {
    /// Folder of a site, as `whet site up` makes it [env: WHETSTONE_SITE]
    #[arg(long, value_name = "DIR", global = true)]
    pub site: Option<PathBuf>,
    /// Kubeconfig file [env: KUBECONFIG]
    #[arg(long, value_name = "FILE", global = true)]
    pub kubeconfig: Option<PathBuf>,
    /// Context in the kubeconfig
    #[arg(long, value_name = "NAME", global = true)]
    pub context: Option<String>,
}

/// A site that can be asked.
pub struct Site {
    pub client: Client,
    /// The apiserver's URL.
    pub server: String,
    /// The site's folder, if it was reached by one.
    folder: Option<PathBuf>,
}

impl Access {
    /// The kubeconfig to read, and the site's folder if it is one's.
    fn place(&self) -> Result<(Kubeconfig, Option<PathBuf>), Failure> {
        let read = |path: &Path| {
            Kubeconfig::read_from(path).map_err(|e| Failure::Kubeconfig(format!("{}: {e}", path.display())))
        };
        if let Some(path) = &self.kubeconfig {
            return Ok((read(path)?, self.site.clone()));
        }
        let of_folder = |dir: PathBuf| Ok((read(&dir.join(local::KUBECONFIG))?, Some(dir)));
        if let Some(dir) = &self.site {
            return of_folder(dir.clone());
        }
        let by_environment = Kubeconfig::from_env().map_err(|e| Failure::Kubeconfig(e.to_string()))?;
        if let Some(config) = by_environment {
            return Ok((config, None));
        }
        if let Some(dir) = std::env::var_os("WHETSTONE_SITE").filter(|dir| !dir.is_empty()) {
            return of_folder(dir.into());
        }
        let default = local::default_dir().filter(|dir| dir.join(local::KUBECONFIG).is_file());
        let usual = Kubeconfig::read();
        match (default, usual) {
            // A plugin goes where kubectl goes.
            (Some(dir), Ok(config)) => match is_plugin() {
                true => Ok((config, None)),
                false => of_folder(dir),
            },
            (Some(dir), Err(_)) => of_folder(dir),
            (None, Ok(config)) => Ok((config, None)),
            (None, Err(e)) => Err(Failure::Kubeconfig(e.to_string())),
        }
    }

    pub async fn connect(&self) -> anyhow::Result<Site> {
        let (kubeconfig, folder) = self.place().or_exit()?;
        connect(kubeconfig, self.context.clone(), folder).await.or_exit()
    }
}

/// A site by the text of its kubeconfig.
pub async fn connect(
    kubeconfig: Kubeconfig,
    context: Option<String>,
    folder: Option<PathBuf>,
) -> Result<Site, Failure> {
    let options = KubeConfigOptions { context, ..KubeConfigOptions::default() };
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &options)
        .await
        .map_err(|e| Failure::Kubeconfig(e.to_string()))?;
    config.connect_timeout = Some(CONNECT);
    let server = config.cluster_url.to_string().trim_end_matches('/').to_owned();
    let client = Client::try_from(config)
        .map_err(|e| Failure::Apiserver { server: server.clone(), what: e.to_string() })?;
    Ok(Site { client, server, folder })
}

impl Site {
    /// Objects of the whole cluster.
    pub fn all<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = ()>,
    {
        Api::all(self.client.clone())
    }

    pub fn namespaced<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    pub fn failure(&self, what: &str, error: kube::Error) -> Failure {
        Failure::of_kube(&self.server, what, error)
    }

    /// Every object that fits, page by page.
    pub async fn list<K>(&self, params: ListParams) -> Result<Vec<K>, Failure>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
    {
        let (api, mut params, mut found) = (self.all::<K>(), params.limit(PAGE), Vec::new());
        loop {
            let page = api.list(&params).await.map_err(|e| self.failure(&K::plural(&()), e))?;
            found.extend(page.items);
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) if found.len() < MAX_OBJECTS => params = params.continue_token(&token),
                _ => return Ok(found),
            }
        }
    }

    /// A blade by its name, else by its serial.
    pub async fn find_blade(&self, wanted: &str) -> Result<Option<Blade>, Failure> {
        let is_name = whetstone_model::ids::BladeName::new(wanted).is_ok();
        if is_name {
            let blade = self
                .all::<Blade>()
                .get_opt(wanted)
                .await
                .map_err(|e| self.failure(&blade_text(wanted), e))?;
            if blade.is_some() {
                return Ok(blade);
            }
        }
        let params = ListParams::default().fields(&format!("spec.serial={wanted}"));
        Ok(self.list::<Blade>(params).await?.into_iter().next())
    }

    /// The blade that has to be there.
    pub async fn blade(&self, wanted: &str) -> anyhow::Result<Blade> {
        checked_blade(wanted)?;
        let found = self.find_blade(wanted).await.or_exit()?;
        found.ok_or_else(|| input_error(format!("no {} (`whet blades` lists them)", blade_text(wanted))))
    }

    /// The operator's API for people.
    pub async fn ops(&self) -> Result<Ops, Failure> {
        Ops::connect(self, self.folder.as_deref()).await
    }
}

fn blade_text(wanted: &str) -> String {
    format!("blade {wanted}")
}

/// A name or a serial may stand in a path and in a selector as it is.
pub fn checked_blade(wanted: &str) -> anyhow::Result<()> {
    whetstone_model::ids::Serial::new(wanted).map_err(|_| {
        let shown: String = wanted.chars().take(80).collect();
        input_error(format!("{shown:?} is neither a blade's name nor a serial"))
    })?;
    Ok(())
}
