//! Kafka's jars, from Maven Central, kept under the workspace's `target` folder.

use super::{ServerError, process};
use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::Command,
};

/// The version of Apache Kafka that tests run against.
pub const KAFKA_VERSION: &str = "4.1.0";

/// The folder with Kafka's jars; fetched by Maven if they are not there yet (43 MB).
///
/// Processes that ask at the same time fetch once: the others wait.
///
/// # Errors
/// When Maven is not installed or cannot reach its repository.
pub fn kafka_libs() -> Result<PathBuf, ServerError> {
    // Not cargo's target folder, which a developer may have moved and cleaned: jars outlive builds.
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    let libs = target.join(format!("kafka-libs-{KAFKA_VERSION}"));
    if !libs.is_dir() {
        let failed = |error| ServerError::io("the folder for Kafka's jars could not be made", error);
        fs::create_dir_all(&target).map_err(failed)?;
        let lock = File::create(target.join("kafka-libs.lock")).map_err(failed)?;
        lock.lock().map_err(failed)?;
        if !libs.is_dir() {
            fetch(&target, &libs)?;
        }
    }
    libs.canonicalize().map_err(|error| ServerError::io("Kafka's jars are gone", error))
}

fn fetch(target: &Path, libs: &Path) -> Result<(), ServerError> {
    let failed = |error: io::Error| ServerError::io("Kafka's jars could not be put in place", error);
    let work = tempfile::Builder::new().prefix("kafka-libs-").tempdir_in(target).map_err(failed)?;
    fs::write(work.path().join("pom.xml"), pom()).map_err(failed)?;
    let mut maven = Command::new("mvn");
    maven
        .args(["-q", "-B", "dependency:copy-dependencies", "-DoutputDirectory=libs"])
        .current_dir(work.path());
    process::output(&mut maven)?;
    // By rename, so that a folder of that name is always complete.
    fs::rename(work.path().join("libs"), libs).map_err(failed)
}

fn pom() -> String {
    let dependency = |group: &str, artifact: &str, version: &str| {
        format!(
            "<dependency><groupId>{group}</groupId><artifactId>{artifact}</artifactId>\
             <version>{version}</version></dependency>\n"
        )
    };
    let log4j = |artifact| dependency("org.apache.logging.log4j", artifact, "2.24.3");
    format!(
        "<project><modelVersion>4.0.0</modelVersion><groupId>local</groupId><artifactId>kafka-libs</artifactId>\
         <version>1</version><dependencies>\n{}{}{}</dependencies></project>\n",
        dependency("org.apache.kafka", "kafka_2.13", KAFKA_VERSION),
        log4j("log4j-slf4j-impl"),
        log4j("log4j-core"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pom_names_kafka_and_its_logging() {
        let pom = pom();
        assert!(pom.contains("<artifactId>kafka_2.13</artifactId><version>4.1.0</version>"), "{pom}");
        assert_eq!(pom.matches("<dependency>").count(), 3);
        assert_eq!(pom.matches("</dependency>").count(), 3);
    }
}
