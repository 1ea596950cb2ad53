//! `cargo xtask tools`: the servers and programs that tests need: from PATH if they are installed, else
//! unpacked from Debian packages into `target/tools`, without root and without changing the system.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::debian::{depends, unpack, with_libraries};
use crate::report;
use crate::run::{Failure, Outcome, on_path};
use crate::workspace::Workspace;

/// Fetches all of them.
pub(crate) fn tools(arguments: &[String]) -> Outcome {
    if let Some(argument) = arguments.first() {
        return Err(Failure::usage(format!(
            "tools takes no arguments, got `{argument}`"
        )));
    }
    let target = Workspace::load()?.target;
    for (name, file) in [
        ("etcd", etcd(&target)?),
        ("python3", python3(&target)?),
        ("postgresql", postgres(&target)?),
    ] {
        report::note(&format!("{name}: {}", file.display()));
    }
    Ok(())
}

/// An etcd that runs; unpacked into `target` if necessary.
pub(crate) fn etcd(target: &Path) -> Outcome<PathBuf> {
    if let Some(file) = on_path("etcd") {
        return Ok(file);
    }
    let folder = target.join("tools").join("etcd");
    let file = folder.join("usr/bin/etcd");
    if !file.is_file() {
        report::step("tools: etcd is not on PATH, unpacking Debian's etcd-server into target/tools");
        unpack(&["etcd-server"], &folder)?;
    }
    checked(file)
}

/// A Python 3 that runs, with its standard library.
pub(crate) fn python3(target: &Path) -> Outcome<PathBuf> {
    if let Some(file) = on_path("python3") {
        return checked(file);
    }
    let folder = target.join("tools").join("python3");
    let file = folder.join("bin/python3");
    if !file.is_file() {
        report::step("tools: python3 is not on PATH, unpacking Debian's into target/tools");
        let minimal = depends("python3-minimal", "python3.", &folder)?;
        let python = minimal.trim_end_matches("-minimal");
        let (minimal, library) = (format!("lib{python}-minimal"), format!("lib{python}-stdlib"));
        let program = format!("{python}-minimal");
        unpack(&[&program, &minimal, &library, "libexpat1"], &folder)?;
        // It looks for its library where it would be installed, and the system may lack the one it is linked
        // with.
        let script = format!(
            "#!/bin/sh\nusr=$(cd \"$(dirname \"$0\")/../usr\" && pwd)\n\
             export PYTHONHOME=\"$usr\" LD_LIBRARY_PATH=$(echo \"$usr\"/lib/*-linux-gnu* \"$usr\"/../lib/*-linux-gnu* | tr ' ' :)\n\
             exec \"$usr/bin/{python}\" \"$@\"\n"
        );
        fs::create_dir_all(folder.join("bin"))?;
        fs::write(&file, script)?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755))?;
    }
    checked(file)
}

/// A PostgreSQL server that runs, with `initdb` next to it; tests look in the same places.
pub(crate) fn postgres(target: &Path) -> Outcome<PathBuf> {
    let installed = on_path("postgres").filter(|file| file.with_file_name("initdb").is_file());
    if let Some(file) = installed.or_else(|| debian_postgres(Path::new("/usr"))) {
        return Ok(file);
    }
    let folder = target.join("tools").join("postgresql");
    if debian_postgres(&folder.join("usr")).is_none() {
        report::step("tools: PostgreSQL is not installed, unpacking Debian's into target/tools");
        let package = depends("postgresql", "postgresql-", &folder)?;
        let packages = with_libraries(&package, &folder)?;
        let packages: Vec<&str> = packages.iter().map(String::as_str).collect();
        unpack(&packages, &folder)?;
    }
    debian_postgres(&folder.join("usr")).ok_or_else(|| {
        Failure::new("Debian's package of PostgreSQL lacks `postgres` or `initdb` in the expected folder")
    })
}

/// The folder of the latest version in Debian's packages, below `usr`.
fn debian_postgres(usr: &Path) -> Option<PathBuf> {
    let versions = fs::read_dir(usr.join("lib/postgresql")).ok()?;
    let files = versions
        .flatten()
        .map(|version| version.path().join("bin/postgres"));
    files
        .filter(|file| file.is_file() && file.with_file_name("initdb").is_file())
        .max()
}

/// `file`, if it runs.
fn checked(file: PathBuf) -> Outcome<PathBuf> {
    let runs = Command::new(&file)
        .arg("--version")
        .stdout(Stdio::null())
        .status();
    match runs {
        Ok(status) if status.success() => Ok(file),
        Ok(status) => Err(Failure::new(format!(
            "`{} --version` ended with {status}",
            file.display()
        ))),
        Err(error) => Err(Failure::new(format!(
            "`{}` does not run: {error}",
            file.display()
        ))),
    }
}
