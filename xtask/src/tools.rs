//! `cargo xtask tools`: the servers that tests talk to. From PATH if they are there, else unpacked from Debian's package
//! into `target/tools`, without root and without touching the system.

use std::fs;
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
    let file = etcd(&Workspace::load()?.target)?;
    report::note(&format!("etcd: {}", file.display()));
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
        unpack("etcd-server", &folder)?;
    }
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

/// Downloads the Debian package `name` and unpacks it into `folder`, which appears at once or not at all.
fn unpack(name: &str, folder: &Path) -> Outcome {
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
    if download(name, &work, &[]).is_err() {
        // The system's package lists are missing or older than the mirror: fetch own ones, which needs no root.
        report::note("the system's package lists do not lead to it; fetching fresh ones into target/tools");
        let own = own_lists(folder)?;
        show(
            "package lists",
            Command::new("apt-get")
                .args(&own)
                .arg("update")
                .stdin(Stdio::null()),
        )?;
        download(name, &work, &own)?;
    }
    let package = fs::read_dir(&work)?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .ok_or_else(|| Failure::new(format!("apt-get reported success but left no {name} package")))?;
    let unpacked = work.join("unpacked");
    show(
        "unpack",
        Command::new("dpkg")
            .arg("-x")
            .arg(&package)
            .arg(&unpacked)
            .stdin(Stdio::null()),
    )?;
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    fs::rename(&unpacked, folder)?;
    fs::remove_dir_all(&work)?;
    Ok(())
}

fn download(name: &str, work: &Path, options: &[String]) -> Outcome {
    show(
        "download",
        Command::new("apt-get")
            .args(options)
            .args(["download", name])
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
