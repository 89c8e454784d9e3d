//! A way to the apiserver that can be blocked: connections stay open, and nothing comes through.

use std::path::{Path, PathBuf};

use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;

pub struct Way {
    open: watch::Sender<bool>,
    pub kubeconfig: PathBuf,
}

impl Way {
    /// A way beside that of `kubeconfig`, with a kubeconfig of its own in `dir`.
    pub fn beside(rt: &Runtime, kubeconfig: &Path, dir: &Path) -> Way {
        let text = std::fs::read_to_string(kubeconfig).unwrap();
        let config = kube::config::Kubeconfig::from_yaml(&text).unwrap();
        let server = config.clusters[0].cluster.as_ref().unwrap().server.clone().unwrap();
        let target = server.strip_prefix("https://").unwrap().to_owned();
        let listener = rt.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let own = format!("https://{}", listener.local_addr().unwrap());
        let kubeconfig = dir.join("way.kubeconfig");
        std::fs::write(&kubeconfig, text.replace(&server, &own)).unwrap();
        let (open, opened) = watch::channel(true);
        rt.spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(carry(client, target.clone(), opened.clone()));
            }
        });
        Way { open, kubeconfig }
    }

    pub fn block(&self) {
        self.open.send_replace(false);
    }

    pub fn open(&self) {
        self.open.send_replace(true);
    }
}

/// What is on its way when the way is blocked is lost with its connection, once it is open again.
async fn carry(mut client: TcpStream, target: String, mut opened: watch::Receiver<bool>) {
    let _ = opened.wait_for(|open| *open).await;
    let Ok(mut server) = TcpStream::connect(target).await else { return };
    let mut blocked = opened.clone();
    tokio::select! {
        _ = tokio::io::copy_bidirectional(&mut client, &mut server) => return,
        _ = blocked.wait_for(|open| !*open) => {}
    }
    let _ = opened.wait_for(|open| *open).await;
}
