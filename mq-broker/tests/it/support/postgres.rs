//! A real PostgreSQL for one test: in a temporary folder, behind a Unix socket, killed and started again at
//! will, gone with the test. It refuses to run as root: then it gets an unprivileged uid.

use std::ffi::OsStr;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _, PgConnection};

const START_WITHIN: Duration = Duration::from_secs(60);
/// `nobody`.
const UNPRIVILEGED: u32 = 65534;
/// For `setpriv`: who gives root up may still enter any folder. The bit lets `access` see the capability too.
const KEEP_CAPABILITY: [&str; 3] = [
    "--securebits=+no_setuid_fixup",
    "--inh-caps=+dac_override",
    "--ambient-caps=+dac_override",
];
const PASSWORD: &str = "pass-word:@";

pub(crate) struct Postgres {
    programs: PathBuf,
    folder: tempfile::TempDir,
    running: Option<Child>,
}

/// The folder of `postgres` and `initdb`: `HC_MQ_POSTGRES`, else one on PATH, else Debian's, else what `cargo
/// xtask tools` unpacked.
fn programs() -> PathBuf {
    if let Some(named) = std::env::var_os("HC_MQ_POSTGRES") {
        return named.into();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    folders.extend(debian(Path::new("/usr")));
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    let test = std::env::current_exe().unwrap_or_default();
    for target in std::iter::once(workspace.as_path()).chain(test.ancestors()) {
        folders.extend(debian(&target.join("tools/postgresql/usr")));
    }
    let found = folders
        .into_iter()
        .find(|folder| folder.join("postgres").is_file() && folder.join("initdb").is_file());
    found.expect(
        "these tests need a real PostgreSQL: neither HC_MQ_POSTGRES nor PATH nor /usr/lib/postgresql nor \
         target/tools/postgresql has `postgres` and `initdb`; install postgresql, or run `cargo xtask tools`",
    )
}

/// Where Debian's packages put the programs, the latest version first.
fn debian(usr: &Path) -> Vec<PathBuf> {
    let Ok(versions) = std::fs::read_dir(usr.join("lib/postgresql")) else {
        return Vec::new();
    };
    let mut folders: Vec<PathBuf> = versions
        .flatten()
        .map(|version| version.path().join("bin"))
        .collect();
    folders.sort();
    folders.reverse();
    folders
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

impl Postgres {
    /// A new server that answers, with an empty database `catalog`.
    pub(crate) async fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("pg").tempdir().unwrap();
        let password = folder.path().join("password");
        std::fs::write(&password, PASSWORD).unwrap();
        std::fs::create_dir(folder.path().join("data")).unwrap();
        if is_root() {
            for path in [folder.path(), &password, &folder.path().join("data")] {
                chown(path, Some(UNPRIVILEGED), Some(UNPRIVILEGED)).unwrap();
            }
        }
        let mut server = Self {
            programs: programs(),
            folder,
            running: None,
        };
        let made = server
            .command("initdb")
            .args([
                "--username=postgres",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--locale=C",
                "--no-sync",
            ])
            .arg(format!("--pwfile={}", password.display()))
            .arg(server.data())
            .output()
            .unwrap();
        assert!(
            made.status.success(),
            "initdb: {}{}",
            String::from_utf8_lossy(&made.stdout),
            String::from_utf8_lossy(&made.stderr)
        );
        server.restart().await;
        server.run_in("postgres", "CREATE DATABASE catalog").await;
        server
    }

    /// The URL that the broker is given.
    pub(crate) fn url(&self) -> String {
        self.url_with("pass-word%3A%40")
    }

    pub(crate) fn url_with(&self, password: &str) -> String {
        let folder = self.folder.path().display();
        format!("postgres://postgres:{password}@localhost/catalog?host={folder}")
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// One of its programs, as somebody it agrees to run as.
    fn command(&self, name: &str) -> Command {
        let program = self.programs.join(name);
        let mut command = if is_root() {
            let mut command = Command::new("setpriv");
            command.args([
                format!("--reuid={UNPRIVILEGED}"),
                format!("--regid={UNPRIVILEGED}"),
                "--clear-groups".to_owned(),
            ]);
            // The programs may lie in a folder that only root may enter.
            if may_keep_capability() {
                command.args(KEEP_CAPABILITY);
            }
            command.arg(&program);
            command
        } else {
            Command::new(&program)
        };
        command
            .env("LD_LIBRARY_PATH", self.libraries())
            .env("LC_ALL", "C")
            .current_dir("/")
            .stdin(Stdio::null());
        command
    }

    /// Libraries that were unpacked with it.
    fn libraries(&self) -> std::ffi::OsString {
        let usr = self.programs.ancestors().nth(4).unwrap_or(Path::new("/usr"));
        if usr == Path::new("/usr") || usr == Path::new("/") {
            return std::ffi::OsString::new();
        }
        let folders = [usr.join("lib"), usr.join("../lib")];
        let folders = folders
            .iter()
            .flat_map(|lib| std::fs::read_dir(lib).into_iter().flatten().flatten());
        let multiarch = folders.map(|entry| entry.path()).filter(|path| {
            path.file_name()
                .and_then(OsStr::to_str)
                .is_some_and(|name| name.contains("-linux-gnu"))
        });
        std::env::join_paths(multiarch).unwrap()
    }

    /// Starts it on its data and waits until it answers.
    pub(crate) async fn restart(&mut self) {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.folder.path().join("log"))
            .unwrap();
        let socket = self.folder.path().display().to_string();
        let child = self
            .command("postgres")
            .arg("-D")
            .arg(self.data())
            .args([
                "-c",
                "listen_addresses=",
                "-c",
                "fsync=off",
                "-c",
                "shared_buffers=16MB",
                "-c",
                "max_connections=20",
            ])
            .args(["-c", &format!("unix_socket_directories={socket}")])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.running = Some(child);
        let deadline = Instant::now() + START_WITHIN;
        while self.try_connect("postgres").await.is_none() {
            let ended = self.running.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none(), "PostgreSQL ended: {ended:?}\n{}", self.log());
            assert!(
                Instant::now() < deadline,
                "PostgreSQL does not answer:\n{}",
                self.log()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// SIGQUIT: it ends at once, its connections with it, without a last checkpoint.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.running.take() {
            let id = rustix::process::Pid::from_child(&child);
            rustix::process::kill_process(id, rustix::process::Signal::QUIT).unwrap();
            child.wait().unwrap();
        }
    }

    async fn try_connect(&self, database: &str) -> Option<PgConnection> {
        let options = PgConnectOptions::new_without_pgpass()
            .socket(self.folder.path())
            .username("postgres")
            .password(PASSWORD)
            .database(database);
        options.disable_statement_logging().connect().await.ok()
    }

    /// A connection to the database `catalog`.
    pub(crate) async fn connect(&self) -> PgConnection {
        self.try_connect("catalog").await.expect("it runs")
    }

    /// Runs a statement in a database.
    pub(crate) async fn run_in(&self, database: &str, sql: &'static str) {
        let mut connection = self.try_connect(database).await.expect("it runs");
        sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
    }

    /// The rows of a query in `catalog`, each as one text with `|` between columns; `None` = it fails just
    /// now.
    pub(crate) async fn rows(&self, sql: &'static str) -> Option<Vec<String>> {
        let mut connection = self.try_connect("catalog").await?;
        let rows = sqlx::query_scalar::<_, String>(sql)
            .fetch_all(&mut connection)
            .await
            .ok();
        connection.close().await.ok()?;
        rows
    }
}

/// Whether a process that gives root up may keep one capability here.
fn may_keep_capability() -> bool {
    let tried = Command::new("setpriv")
        .args([&format!("--reuid={UNPRIVILEGED}"), "--clear-groups"])
        .args(KEEP_CAPABILITY)
        .arg("true")
        .stderr(Stdio::null())
        .status();
    tried.is_ok_and(|status| status.success())
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.kill();
    }
}
