//! `cargo xtask tools`: the programs that tests talk to. From PATH if they are there, else unpacked from Debian's packages
//! into `target/tools`, without root and without touching the system.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::report;
use crate::run::{Failure, Outcome, on_path, show};
use crate::workspace::Workspace;

/// Fetches all of them.
pub(crate) fn tools(arguments: &[String]) -> Outcome {
    if let Some(argument) = arguments.first() {
        return Err(Failure::usage(format!(
            "tools takes no arguments, got `{argument}`"
        )));
    }
    let target = Workspace::load()?.target;
    for (name, file) in [("etcd", etcd(&target)?), ("python3", python3(&target)?)] {
        report::note(&format!("{name}: {}", file.display()));
    }
    Ok(())
}

/// An etcd that runs; unpacked into `target` if need be.
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
        let python = debian_python(&folder)?;
        let (minimal, library) = (format!("lib{python}-minimal"), format!("lib{python}-stdlib"));
        let program = format!("{python}-minimal");
        unpack(&[&program, &minimal, &library, "libexpat1"], &folder)?;
        // It looks for its library where it is installed, and the system may lack the one it is linked with.
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

/// The name of the Python that this Debian calls `python3`, as in `python3.11`.
fn debian_python(folder: &Path) -> Outcome<String> {
    let ask = |options: &[String]| {
        let depends = Command::new("apt-cache")
            .args(options)
            .args(["depends", "python3-minimal"])
            .output();
        let text = depends.map_or_else(
            |_| String::new(),
            |output| String::from_utf8_lossy(&output.stdout).into_owned(),
        );
        let mut words = text
            .split_whitespace()
            .filter_map(|word| word.strip_suffix("-minimal"));
        words.find(|name| name.starts_with("python3.")).map(str::to_owned)
    };
    match ask(&[]) {
        Some(name) => Ok(name),
        None => ask(&fresh_lists(folder)?).ok_or_else(|| {
            Failure::new(
                "apt-cache knows no package python3-minimal; install Python 3 so that `python3` is on PATH",
            )
        }),
    }
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

/// Downloads these Debian packages and unpacks them into `folder`, which appears at once or not at all.
fn unpack(packages: &[&str], folder: &Path) -> Outcome {
    let name = &packages.join(", ");
    for tool in ["apt-get", "dpkg"] {
        if on_path(tool).is_none() {
            return Err(Failure::new(format!(
                "`{tool}` is missing, so the Debian package {name} cannot be unpacked; install the server of {name} \
                 so that its program is on PATH"
            )));
        }
    }
    let work = folder.with_extension("download");
    if work.exists() {
        fs::remove_dir_all(&work)?;
    }
    fs::create_dir_all(&work)?;
    if download(packages, &work, &[]).is_err() {
        let own = fresh_lists(folder)?;
        download(packages, &work, &own)?;
    }
    let files: Vec<PathBuf> = fs::read_dir(&work)?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .collect();
    if files.len() < packages.len() {
        return Err(Failure::new(format!(
            "apt-get reported success but left {} of the packages {name}",
            files.len()
        )));
    }
    let unpacked = work.join("unpacked");
    for package in &files {
        show(
            "unpack",
            Command::new("dpkg")
                .arg("-x")
                .arg(package)
                .arg(&unpacked)
                .stdin(Stdio::null()),
        )?;
    }
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    fs::rename(&unpacked, folder)?;
    fs::remove_dir_all(&work)?;
    Ok(())
}

fn download(packages: &[&str], work: &Path, options: &[String]) -> Outcome {
    let name = packages.join(", ");
    show(
        "download",
        Command::new("apt-get")
            .args(options)
            .arg("download")
            .args(packages)
            .stdin(Stdio::null())
            .current_dir(work),
    )
    .map_err(|failure| {
        Failure::new(format!(
            "{}; the package {name} cannot be fetched: check the network and /etc/apt, or install {name} yourself",
            failure.message
        ))
    })
}

/// Options that make apt-get use lists of our own, which are fetched now: those of the system are missing, or older than
/// the mirror. Needs no root.
fn fresh_lists(folder: &Path) -> Outcome<Vec<String>> {
    report::note("the system's package lists do not lead to it; fetching fresh ones into target/tools");
    let own = own_lists(folder)?;
    show(
        "package lists",
        Command::new("apt-get")
            .args(&own)
            .arg("update")
            .stdin(Stdio::null()),
    )?;
    Ok(own)
}

/// Options that make apt-get keep its state below `target/tools/apt`.
fn own_lists(folder: &Path) -> Outcome<Vec<String>> {
    let apt = folder.with_file_name("apt");
    let (lists, cache) = (apt.join("lists"), apt.join("cache"));
    fs::create_dir_all(lists.join("partial"))?;
    fs::create_dir_all(cache.join("archives").join("partial"))?;
    Ok(vec![
        "-o".to_owned(),
        format!("Dir::State::lists={}", lists.display()),
        "-o".to_owned(),
        format!("Dir::Cache={}", cache.display()),
        "-o".to_owned(),
        "APT::Sandbox::User=".to_owned(),
        "-o".to_owned(),
        "Debug::NoLocking=true".to_owned(),
    ])
}
