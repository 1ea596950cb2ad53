//! An etcd started by an example, on free ports, with its data in a temporary folder.

use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// How long it may take until its first answer.
const READY_WAIT: Duration = Duration::from_secs(20);

/// A running etcd; killed and cleaned up when dropped.
#[derive(Debug)]
pub struct LocalEtcd {
    child: Child,
    address: String,
    _folder: TempDir,
}

impl LocalEtcd {
    /// Starts the etcd on PATH, else the one that `cargo xtask tools` has unpacked.
    ///
    /// # Errors
    /// There is none, or it does not start.
    pub fn start() -> Result<Self, Box<dyn std::error::Error>> {
        let program =
            program().ok_or("there is no etcd on PATH or in target/tools; run `cargo xtask tools`")?;
        let folder = tempfile::tempdir()?;
        let (client, peer) = (free_address()?, free_address()?);
        let (client_url, peer_url) = (format!("http://{client}"), format!("http://{peer}"));
        let child = Command::new(program)
            .arg("--data-dir")
            .arg(folder.path())
            .args([
                "--listen-client-urls",
                &client_url,
                "--advertise-client-urls",
                &client_url,
            ])
            .args([
                "--listen-peer-urls",
                &peer_url,
                "--initial-advertise-peer-urls",
                &peer_url,
            ])
            .args(["--initial-cluster", &format!("default={peer_url}")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let etcd = Self {
            child,
            address: client,
            _folder: folder,
        };
        etcd.wait()?;
        Ok(etcd)
    }

    /// Its host and port for clients.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    fn wait(&self) -> Result<(), String> {
        let deadline = Instant::now() + READY_WAIT;
        while !self.healthy() {
            if Instant::now() > deadline {
                return Err(format!(
                    "etcd does not answer at {} within {READY_WAIT:?}",
                    self.address
                ));
            }
            std::thread::park_timeout(Duration::from_millis(50));
        }
        Ok(())
    }

    fn healthy(&self) -> bool {
        let Ok(mut socket) = TcpStream::connect(&self.address) else {
            return false;
        };
        let request = format!("GET /health HTTP/1.0\r\nhost: {}\r\n\r\n", self.address);
        let mut answer = String::new();
        std::io::Write::write_all(&mut socket, request.as_bytes()).is_ok()
            && socket.read_to_string(&mut answer).is_ok()
            && answer.contains("\"true\"")
    }
}

impl Drop for LocalEtcd {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn program() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let on_path = std::env::split_paths(&path).map(|folder| folder.join("etcd"));
    let own = std::env::current_exe().ok()?;
    let unpacked = own
        .ancestors()
        .map(|folder: &Path| folder.join("tools/etcd/usr/bin/etcd"));
    on_path.chain(unpacked).find(|file| file.is_file())
}

/// A port that is free now. Another program may take it before etcd does; then the start fails with a
/// message.
fn free_address() -> std::io::Result<String> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}
