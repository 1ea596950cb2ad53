//! A real etcd for one test: its own ports and folder, killed and restarted at will, gone with the test.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use etcd_client::Client;
use rustix::process::{Pid, Signal, kill_process};

const START_WITHIN: Duration = Duration::from_secs(30);

pub(crate) struct EtcdServer {
    program: PathBuf,
    folder: tempfile::TempDir,
    client_port: u16,
    peer_port: u16,
    running: Option<Child>,
}

/// `HC_MQ_ETCD`, else `etcd` on PATH, else what `cargo xtask tools` unpacked.
fn program() -> PathBuf {
    if let Some(named) = std::env::var_os("HC_MQ_ETCD") {
        return named.into();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|folder| folder.join("etcd"));
    // The target folder is the workspace's, or the one this test was built into.
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    let test = std::env::current_exe().unwrap_or_default();
    let targets = std::iter::once(workspace.as_path()).chain(test.ancestors());
    let unpacked = targets.map(|target| target.join("tools/etcd/usr/bin/etcd"));
    on_path
        .chain(unpacked)
        .find(|program| program.is_file())
        .expect(
            "these tests need a real etcd: neither HC_MQ_ETCD nor `etcd` on PATH nor target/tools/etcd/usr/bin/etcd; \
             install etcd-server, or run `cargo xtask tools`",
        )
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("its address").port()
}

impl EtcdServer {
    /// A new etcd that answers.
    pub(crate) async fn start() -> Self {
        let mut server = Self {
            program: program(),
            folder: tempfile::tempdir().expect("a folder"),
            client_port: 0,
            peer_port: 0,
            running: None,
        };
        // A port can be taken between our asking for a free one and etcd's binding it.
        for _ in 0..5 {
            (server.client_port, server.peer_port) = (free_port(), free_port());
            if server.try_restart().await {
                return server;
            }
        }
        panic!("etcd does not start; its log:\n{}", server.log());
    }

    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.client_port)
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Starts it on its data and waits until it answers.
    pub(crate) async fn restart(&mut self) {
        assert!(
            self.try_restart().await,
            "etcd does not come back; its log:\n{}",
            self.log()
        );
    }

    async fn try_restart(&mut self) -> bool {
        let (client, peer) = (
            format!("http://127.0.0.1:{}", self.client_port),
            format!("http://127.0.0.1:{}", self.peer_port),
        );
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.folder.path().join("log"))
            .expect("a log file");
        let child = Command::new(&self.program)
            .arg("--data-dir")
            .arg(self.data())
            .args([
                "--listen-client-urls",
                &client,
                "--advertise-client-urls",
                &client,
            ])
            .args([
                "--listen-peer-urls",
                &peer,
                "--initial-advertise-peer-urls",
                &peer,
            ])
            .args(["--initial-cluster", &format!("default={peer}")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot run {}: {error}", self.program.display()));
        self.running = Some(child);
        let deadline = Instant::now() + START_WITHIN;
        while Instant::now() < deadline {
            if self.has_ended() {
                return false;
            }
            if self.answers().await {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        false
    }

    fn has_ended(&mut self) -> bool {
        let Some(child) = &mut self.running else {
            return true;
        };
        child.try_wait().expect("its state").is_some()
    }

    async fn answers(&self) -> bool {
        let ask = async {
            Client::connect([self.address()], None)
                .await?
                .get("ready", None)
                .await
        };
        matches!(tokio::time::timeout(Duration::from_secs(1), ask).await, Ok(Ok(_)))
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.running.take() {
            child.kill().expect("kill");
            child.wait().expect("wait");
        }
    }

    /// SIGSTOP: its connections stay open and nothing answers, as with a machine that hangs.
    pub(crate) fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// SIGCONT.
    pub(crate) fn resume(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let child = self.running.as_ref().expect("it runs");
        kill_process(Pid::from_child(child), signal).expect("a signal");
    }

    /// Kills it and removes its data.
    pub(crate) fn wipe(&mut self) {
        self.kill();
        std::fs::remove_dir_all(self.data()).expect("its data");
    }

    /// A client of one's own, to do from outside what people and accidents do.
    pub(crate) async fn client(&self) -> Client {
        Client::connect([self.address()], None).await.expect("it runs")
    }
}

impl Drop for EtcdServer {
    fn drop(&mut self) {
        if let Some(mut child) = self.running.take() {
            // Best effort: the test is over.
            if child.kill().is_ok() {
                drop(child.wait());
            }
        }
    }
}
