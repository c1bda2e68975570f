import ArgumentParser
import Glibc

/// One agent per run directory: a second one would take the first one's socket away.
enum AgentLock {
  private static func path(_ runDir: String) -> String { runDir + "/agent.lock" }

  /// Takes the lock. It is the process's own: it ends with it, however that ends, so the descriptor is left open.
  static func take(_ runDir: String) throws {
    let descriptor = open(path(runDir), O_CREAT | O_RDWR | O_CLOEXEC, 0o600)
    guard descriptor >= 0 else { throw ValidationError("\(path(runDir)): \(String(cString: strerror(errno)))") }
    guard flock(descriptor, LOCK_EX | LOCK_NB) == 0 else {
      throw ValidationError("another sluice-agent runs on this node: it holds \(path(runDir))")
    }
  }

  /// Throws while an agent runs. Makes nothing where there never was one.
  static func expectFree(_ runDir: String) throws {
    let descriptor = open(path(runDir), O_RDWR | O_CLOEXEC)
    guard descriptor >= 0 else { return }
    defer { close(descriptor) }
    guard flock(descriptor, LOCK_EX | LOCK_NB) == 0 else {
      throw ValidationError("a sluice-agent runs on this node: it holds \(path(runDir)). Stop it first.")
    }
  }
}
