import ClusterSource
import Glibc
import KubernetesObjects
import Testing

@Suite("A folder of manifests, followed live") struct ManifestFolderTests {
  @Test("what is there at the start is read once, then synced; hidden, temporary and nested files are not")
  func start() async throws {
    let folder = try TemporaryFolder()
    folder.write("a.yaml", service("a") + service("b"))
    folder.write("b.yml", service("c"))
    folder.write(
      "c.json",
      #"{"apiVersion":"v1","kind":"Service","metadata":{"name":"d","namespace":"shop"},"spec":{"ports":[{"port":80}]}}"#
    )
    for name in [".hidden.yaml", "a.yaml~", "a.yaml.tmp", ".a.yaml.swp", "notes.txt", ".yaml"] {
      folder.write(name, service("wrong"))
    }
    mkdir("\(folder.path)/nested.yaml", 0o755)
    mkfifo("\(folder.path)/pipe.yaml", 0o600)
    let seen = try await FolderWatch(folder.path).synced()
    #expect(seen.objects.keys.map(\.key.name).sorted() == ["a", "b", "c", "d"])
    #expect(seen.problems.isEmpty && seen.ignoredKinds.isEmpty)
  }

  @Test("create, edit in place, rename over and delete are followed, each as the one change it is")
  func edits() async throws {
    let folder = try TemporaryFolder()
    folder.write("a.yaml", (0..<1000).map { service("s\($0)") }.joined())
    let watch = FolderWatch(folder.path)
    #expect(try await watch.synced().objects.count == 1000)

    folder.write("a.yaml", (0..<1000).map { service("s\($0)", port: $0 == 500 ? "81" : "80") }.joined())
    var seen = try await watch.until("the edit") { $0.port("s500") == 81 }
    #expect(seen.changes.last == ["+Service shop/s500"])

    folder.replace("b.yaml", service("new"))
    seen = try await watch.until("the new file") { $0.port("new") == 80 }
    #expect(seen.changes.last == ["+Service shop/new"])

    folder.replace("b.yaml", service("new", port: "82"))
    seen = try await watch.until("the rename over") { $0.port("new") == 82 }
    #expect(seen.changes.last == ["+Service shop/new"])

    rename("\(folder.path)/b.yaml", "\(folder.path)/c.yaml")
    folder.write("d.yaml", service("last"))
    seen = try await watch.until("the rename") { $0.port("last") == 80 }
    #expect(seen.port("new") == 82)

    folder.remove("c.yaml")
    seen = try await watch.until("the deletion") { $0.port("new") == nil }
    #expect(seen.changes.last == ["-Service shop/new"])
    #expect(seen.objects.count == 1001 && seen.problems.isEmpty)
  }

  @Test("a bad edit is reported and keeps the last good version; the next good one heals it")
  func badEdit() async throws {
    let folder = try TemporaryFolder()
    folder.write("a.yaml", service("a") + service("b"))
    let watch = FolderWatch(folder.path)
    _ = try await watch.synced()

    folder.write("a.yaml", service("a", port: "70000") + service("b", port: "81"))
    var seen = try await watch.until("the problem") { $0.problems["a.yaml"] != nil && $0.port("b") == 81 }
    #expect(seen.port("a") == 80)
    #expect(
      seen.problems["a.yaml"] == [
        "a.yaml:9: Service shop/a: spec.ports[0].port: must be 1 to 65535, is 70000"
      ])

    folder.write("a.yaml", "---\nkind: [\n" + service("b", port: "82"))
    seen = try await watch.until("the unreadable document") { $0.port("b") == 82 }
    #expect(seen.port("a") == 80)
    #expect(seen.problems["a.yaml"]?.count == 1)

    folder.write("a.yaml", "\u{0}")
    seen = try await watch.until("no YAML at all") { $0.problems["a.yaml"]?.first?.hasPrefix("a.yaml:1:") ?? false }
    #expect(seen.port("a") == 80 && seen.port("b") == 82)

    folder.write("a.yaml", service("a", port: "83"))
    seen = try await watch.until("healing") { $0.problems.isEmpty && $0.port("a") == 83 }
    #expect(seen.port("b") == nil && seen.objects.count == 1)
  }

  @Test("a bad document in the middle costs the others nothing, and its lines are those of the file")
  func badInTheMiddle() async throws {
    let folder = try TemporaryFolder()
    folder.write("a.yaml", service("a") + "---\na: b: c\n" + service("b", port: "x") + service("c"))
    let seen = try await FolderWatch(folder.path).synced()
    #expect(seen.objects.keys.map(\.key.name).sorted() == ["a", "c"])
    let problems = try #require(
      try await FolderWatch(folder.path).until("the problems") { $0.problems["a.yaml"] != nil }.problems["a.yaml"])
    #expect(
      problems == [
        "a.yaml:11: is not YAML: mapping values are not allowed in this context",
        "a.yaml:20: Service shop/b: spec.ports[0].port: must be a whole number, is x",
      ])
  }

  @Test("an object in two files is taken from the first by name; the other is reported, and takes over when it can")
  func duplicates() async throws {
    let folder = try TemporaryFolder()
    folder.write("b.yaml", service("a", port: "82"))
    let watch = FolderWatch(folder.path)
    #expect(try await watch.synced().port("a") == 82)

    folder.write("a.yaml", service("a", port: "81"))
    var seen = try await watch.until("the first file") { $0.port("a") == 81 && $0.problems["b.yaml"] != nil }
    #expect(
      seen.problems["b.yaml"] == [
        "b.yaml:2: Service shop/a: is defined in a.yaml too, which is the one in force"
      ])

    folder.write("c.yaml", service("a", port: "83"))
    seen = try await watch.until("the third file") { $0.problems["c.yaml"] != nil }
    #expect(seen.port("a") == 81)

    folder.remove("a.yaml")
    seen = try await watch.until("taking over") { $0.port("a") == 82 && $0.problems["b.yaml"] == nil }
    #expect(seen.changes.last == ["+Service shop/a"])
    #expect(
      try await watch.until("the new owner's name") { $0.problems["c.yaml"]?.first?.contains("b.yaml") ?? false }
        .problems["c.yaml"] == ["c.yaml:2: Service shop/a: is defined in b.yaml too, which is the one in force"])

    folder.remove("b.yaml")
    try await watch.until("the last") { $0.port("a") == 83 && $0.problems.isEmpty }
    folder.remove("c.yaml")
    try await watch.until("the end") { $0.objects.isEmpty }
  }

  @Test("an object twice in one file is taken from its first document")
  func duplicateInOneFile() async throws {
    let folder = try TemporaryFolder()
    folder.write("a.yaml", service("a", port: "81") + service("a", port: "82"))
    let watch = FolderWatch(folder.path)
    let seen = try await watch.until("the problem") { $0.isSynced && $0.problems["a.yaml"] != nil }
    #expect(seen.port("a") == 81)
    #expect(
      seen.problems["a.yaml"] == [
        "a.yaml:11: Service shop/a: stands in this file twice; the one in line 2 is in force"
      ])
  }

  @Test("kinds of no use are counted over the whole folder")
  func ignoredKinds() async throws {
    let folder = try TemporaryFolder()
    let map = "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: m}\n"
    folder.write("a.yaml", map + service("a") + map)
    folder.write("b.yaml", map + "---\napiVersion: apps/v1\nkind: Deployment\n")
    let watch = FolderWatch(folder.path)
    #expect(try await watch.synced().ignoredKinds == ["ConfigMap": 3, "Deployment": 1])
    folder.write("b.yaml", map)
    try await watch.until("fewer") { $0.ignoredKinds == ["ConfigMap": 3] }
    folder.remove("a.yaml")
    try await watch.until("fewer still") { $0.ignoredKinds == ["ConfigMap": 1] }
  }

  @Test("a folder that goes changes nothing, is reported, and is followed again when it is back")
  func folderGone() async throws {
    let parent = try TemporaryFolder()
    let path = "\(parent.path)/manifests"
    let watch = FolderWatch(path)
    try await watch.until("the missing folder") { $0.problems[path] != nil }
    #expect(!watch.now.isSynced)
    #expect(
      watch.now.problems[path] == [
        "\(path): cannot be read; what it held stays in force: No such file or directory"
      ])
    mkdir("\(parent.path)/later", 0o755)
    parent.write("later/a.yaml", service("a") + service("b"))
    rename("\(parent.path)/later", path)
    #expect(try await watch.synced().objects.count == 2)
    try await watch.until("healing") { $0.problems.isEmpty }

    removeTree(path)
    let seen = try await watch.until("the missing folder") { $0.problems[path] != nil }
    // Its files were deleted one by one before it, which is an edit like any other.
    #expect(seen.objects.isEmpty)

    mkdir("\(parent.path)/later", 0o755)
    parent.write("later/a.yaml", service("b", port: "81"))
    rename("\(parent.path)/later", path)
    try await watch.until("the folder's return") { $0.port("b") == 81 && $0.problems.isEmpty }

    rename(path, "\(parent.path)/away")
    try await watch.until("the folder moved away") { $0.problems[path] != nil }
    #expect(watch.now.port("b") == 81)
  }

  @Test("a mounted ConfigMap, whose files are links that are swapped together, is followed")
  func configMap() async throws {
    let folder = try TemporaryFolder()
    for (version, port) in [("1", "81"), ("2", "82")] {
      mkdir("\(folder.path)/..v\(version)", 0o755)
      folder.write("..v\(version)/a.yaml", service("a", port: port))
    }
    symlink("..v1", "\(folder.path)/..data")
    symlink("..data/a.yaml", "\(folder.path)/a.yaml")
    let watch = FolderWatch(folder.path)
    #expect(try await watch.synced().port("a") == 81)
    symlink("..v2", "\(folder.path)/..data_tmp")
    rename("\(folder.path)/..data_tmp", "\(folder.path)/..data")
    let seen = try await watch.until("the swap") { $0.port("a") == 82 }
    #expect(seen.changes.count == 2)
    symlink("..v1/a.yaml", "\(folder.path)/b.yaml")
    try await watch.until("a new link") { $0.problems["b.yaml"] != nil }
  }

  @Test("two thousand files written at once all arrive")
  func burst() async throws {
    let folder = try TemporaryFolder()
    let watch = FolderWatch(folder.path)
    _ = try await watch.synced()
    for index in 0..<2000 { folder.write("f\(index).yaml", service("s\(index)")) }
    let seen = try await watch.until("all") { $0.objects.count == 2000 }
    #expect(seen.problems.isEmpty)
    for index in 0..<2000 { folder.remove("f\(index).yaml") }
    try await watch.until("none") { $0.objects.isEmpty }
  }

  @Test("a stream that is dropped leaves no thread and no descriptor behind")
  func stops() async throws {
    func descriptors() -> Int {
      guard let folder = opendir("/proc/self/fd") else { return 0 }
      defer { closedir(folder) }
      var count = 0
      while let entry = readdir(folder) {
        let name = withUnsafeBytes(of: &entry.pointee.d_name) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) }
        var target = [CChar](repeating: 0, count: 256)
        let length = readlink("/proc/self/fd/\(name)", &target, target.count)
        let text = String(decoding: target[..<max(length, 0)].map { UInt8(bitPattern: $0) }, as: UTF8.self)
        if text.contains("inotify") { count += 1 }
      }
      return count
    }
    // Other tests follow folders meanwhile: 200 more would show.
    let folder = try TemporaryFolder()
    for _ in 0..<200 {
      let watch = FolderWatch(folder.path)
      _ = try await watch.synced()
    }
    for _ in 0..<1000 where descriptors() > 50 { try await Task.sleep(for: .milliseconds(5)) }
    #expect(descriptors() <= 50)
  }
}
