import KubernetesObjects

/// A folder of manifests (`*.yaml`, `*.yml`, `*.json`; not the folders in it), followed live.
///
/// Nothing that is in force is lost to a mistake: an object that turns bad keeps its last good version, a file with a
/// part that cannot be read loses no object, and a folder that is gone changes nothing until it is back. An object in
/// two files is taken from the first by name.
///
/// Changes are seen where they are made in the folder itself: a file that is a link is read again when the link is
/// replaced (as Kubernetes does in mounted ConfigMaps), not when its target is written to.
public final class ManifestFolder: Sendable {
  private let path: String

  public init(path: String) { self.path = path }

  /// Each call reads the folder anew, on a thread of its own, and follows it until the stream is dropped or its
  /// iteration cancelled.
  public func events() -> AsyncStream<SourceEvent> {
    AsyncStream { continuation in
      guard let stop = StopSignal() else { return fail(continuation, "no file descriptor is left") }
      continuation.onTermination = { _ in stop.send() }
      let isRunning = startThread { [path] in
        var follower = FolderFollower(path: path, stop: stop) { continuation.yield($0) }
        follower.run()
        continuation.finish()
      }
      if !isRunning { fail(continuation, "no thread can be started") }
    }
  }

  private func fail(_ continuation: AsyncStream<SourceEvent>.Continuation, _ message: String) {
    let problem = ObjectProblem(file: path, line: 0, object: "", field: "", message: message)
    continuation.yield(.problems([problem], place: path))
    continuation.finish()
  }
}
