import Glibc
import KubernetesObjects

/// The loop behind `ManifestFolder`: list, read, watch, read again what changed. Lives on one thread.
struct FolderFollower {
  private let path: String
  private let stop: StopSignal
  private let emit: (SourceEvent) -> Void
  private let decoder = ObjectDecoder()
  private var index = FolderIndex()
  /// Of files that need not be read again while they look the same.
  private var stamps: [String: FileStamp] = [:]
  private var isSynced = false
  private var folderProblem: String?

  init(path: String, stop: StopSignal, emit: @escaping (SourceEvent) -> Void) {
    self.path = path
    self.stop = stop
    self.emit = emit
  }

  /// Returns when it is told to stop.
  mutating func run() {
    while true {
      // Watching begins before listing, so that nothing falls between.
      let inotify = Inotify(folder: path)
      let watchError = errno
      let isListed = rescan(receivedAt: .now)
      if let inotify {
        guard follow(inotify) else { return }
      } else {
        // The folder is gone, or the system has no watches left: until that changes, looking must do.
        if isListed { report("cannot be watched, is listed every 200 ms instead: \(errorText(watchError))") }
        if stop.wait(for: -1, milliseconds: 200) == .stopped { return }
      }
    }
  }

  /// Returns false when it is told to stop, true when the folder is no longer the one that is watched.
  private mutating func follow(_ inotify: borrowing Inotify) -> Bool {
    report(nil)
    while true {
      guard stop.wait(for: inotify.descriptor, milliseconds: -1) == .ready else { return false }
      let receivedAt = ContinuousClock.now
      /// Whether the last that was heard of the name is that it went.
      var names: [String: Bool] = [:]
      var mustRescan = false
      var isGone = false
      for event in inotify.read() {
        if event.has(IN_DELETE_SELF, IN_MOVE_SELF, IN_IGNORED, IN_UNMOUNT) {
          isGone = true
        } else if event.has(IN_Q_OVERFLOW) || event.name == "..data" {
          mustRescan = true
        } else if ManifestFile.isManifest(event.name), !event.has(IN_CREATE) || file(event.name).isLink {
          names[event.name] = event.has(IN_DELETE, IN_MOVED_FROM)
        }
      }
      if mustRescan, !isGone {
        for name in names.keys { stamps[name] = nil }
        if rescan(receivedAt: receivedAt) { report(nil) }
      } else if !names.isEmpty {
        var bytes = 0
        for (name, isRemoved) in names.sorted(by: { $0.key < $1.key }) { bytes += read(name, isRemoved: isRemoved) }
        publish(receivedAt: receivedAt, bytesRead: bytes)
      }
      if isGone { return true }
    }
  }

  // MARK: Reading

  private func file(_ name: String) -> ManifestFile { ManifestFile(path: "\(path)/\(name)", name: name) }

  /// Reads what looks other than before. The first time, each file is reported as soon as it is read: the receiver can
  /// begin, and the objects of all files need not wait here.
  /// - Returns: false where the folder cannot be read, which is reported.
  private mutating func rescan(receivedAt: ContinuousClock.Instant) -> Bool {
    guard let names = list() else {
      report("cannot be read; what it held stays in force: \(errorText(errno))")
      return false
    }
    var bytes = 0
    // Asked for by name: a file that is replaced while a folder is listed need not occur in the list.
    for name in index.fileNames where !names.contains(name) { bytes += read(name) }
    for name in names.sorted() {
      if let known = stamps[name], file(name).stamp == known { continue }
      bytes += read(name)
      if !isSynced { publish(receivedAt: receivedAt, bytesRead: 0) }
    }
    publish(receivedAt: receivedAt, bytesRead: bytes)
    if !isSynced {
      isSynced = true
      emit(.synced(isRemembered: false))
    }
    return true
  }

  private func list() -> Set<String>? {
    guard let folder = opendir(path) else { return nil }
    defer { closedir(folder) }
    var names: Set<String> = []
    while let entry = readdir(folder) {
      let name = withUnsafeBytes(of: &entry.pointee.d_name) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) }
      if ManifestFile.isManifest(name) { names.insert(name) }
    }
    return names
  }

  /// - Parameter isRemoved: the file is known to have left the folder; if it is not there, that is why.
  /// - Returns: the bytes that were read.
  private mutating func read(_ name: String, isRemoved: Bool = false) -> Int {
    switch file(name).read(decoder, against: index) {
    case .read(let reading, let stamp):
      stamps[name] = stamp.isSettled ? stamp : nil
      index.update(name, with: reading)
      return Int(stamp.size)
    case .absent:
      // With the folder itself gone, no file of it was removed from anything.
      if isRemoved || access(path, F_OK) == 0 { remove(name) } else { index.leave(name) }
    case .failed(let reason):
      stamps[name] = nil
      index.keep(
        name,
        because: ObjectProblem(
          file: name, line: 0, object: "", field: "",
          message: "cannot be read; what it held stays in force: \(reason)"))
    }
    return 0
  }

  private mutating func remove(_ name: String) {
    stamps[name] = nil
    index.remove(name)
  }

  // MARK: Reporting

  private mutating func publish(receivedAt: ContinuousClock.Instant, bytesRead: Int) {
    var bytesRead = bytesRead
    // An object whose file in force went is taken over from another file; that may hand on others in turn, but each
    // object only ever to files that still have it.
    while let name = index.filesToReadAgain.min() { bytesRead += read(name) }
    let changes = index.takeChanges()
    if !changes.isEmpty { emit(.changes(changes, receivedAt: receivedAt)) }
    for (file, problems) in index.takeProblems() { emit(.problems(problems, place: file)) }
    if let kinds = index.takeIgnoredKinds() { emit(.ignoredKinds(kinds)) }
    if bytesRead > 1 << 20 {
      decoder.forgetStrings()
      releaseFreeMemory()
    }
  }

  private mutating func report(_ problem: String?) {
    guard problem != folderProblem else { return }
    folderProblem = problem
    let problems = problem.map { ObjectProblem(file: path, line: 0, object: "", field: "", message: $0) }
    emit(.problems(problems.map { [$0] } ?? [], place: path))
  }
}

/// Reading leaves much free memory with the allocator, which keeps it. Found by name because musl has no such call.
private func releaseFreeMemory() {
  guard let symbol = dlsym(nil, "malloc_trim") else { return }
  _ = unsafeBitCast(symbol, to: (@convention(c) (Int) -> CInt).self)(0)
}
