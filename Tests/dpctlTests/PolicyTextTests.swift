import LocalAPI
import Testing

@testable import dpctl

@Suite("dpctl policy")
struct PolicyTextTests {
  @Test("lists policies with their counters")
  func list() throws {
    let table = PolicyText.list(try Canned.items(Canned.policies), wide: false)
    #expect(
      table.text(withHeaders: true) == """
        POLICY              MODE      DIRECTIONS       STATE      PODS   ALLOWED   DENIED   WOULD-DENY
        shop/allow-egress   enforce   egress           in-force   2      123       2        0
        shop/watch-db       audit     ingress,egress   in-force   1      5         4        7
        other/new           enforce   ingress          pending    0      0         0        0
        """)
    #expect(table.rows.map { $0[0] } == (try Canned.items(Canned.policies)).map(PolicyText.name))
  }

  @Test("wide lists add bytes and pods")
  func wide() throws {
    let table = PolicyText.list(Array(try Canned.items(Canned.policies).prefix(2)), wide: true)
    #expect(table.headers.suffix(4) == ["ALLOWED-BYTES", "DENIED-BYTES", "WOULD-DENY-BYTES", "POD-NAMES"])
    #expect(
      table.rows.map { Array($0.suffix(4)) } == [
        ["7440", "120", "0", "shop/api-1,shop/cart-7d9"], ["300", "244", "420", "shop/db-0"],
      ])
  }

  @Test("shows one policy rule by rule, then what no rule let through")
  func detail() throws {
    let items = try Canned.items(Canned.policies)
    #expect(
      PolicyText.detail(items[0], withHeaders: true) == """
        Policy      shop/allow-egress
        Mode        enforce, in-force
        Directions  egress
        Pods        shop/api-1, shop/cart-7d9

        DIRECTION   RULE   VERDICT   PACKETS   BYTES
        egress      0      allow     120       7200
        egress      1      allow     3         240
        egress      none   deny      2         120
        """)
  }

  @Test("shows would-deny counts of a policy in audit mode, and its denials from before")
  func audit() throws {
    let items = try Canned.items(Canned.policies)
    #expect(
      PolicyText.detail(items[1], withHeaders: true) == """
        Policy      shop/watch-db
        Mode        audit, in-force
        Directions  ingress, egress
        Pods        shop/db-0

        DIRECTION   RULE   VERDICT      PACKETS   BYTES
        ingress     0      allow        5         300
        ingress     none   deny         4         244
        ingress     none   would deny   7         420
        egress      none   would deny   0         0
        """)
  }

  @Test("says that a policy is not in force yet and selects nothing here")
  func pending() throws {
    let items = try Canned.items(Canned.policies)
    #expect(
      PolicyText.detail(items[2], withHeaders: false) == """
        Policy      other/new
        Mode        enforce, pending
        Directions  ingress
        Pods        none on this node

        ingress   none   deny   0   0
        """)
  }

  @Test("differences are a table")
  func differences() throws {
    let differences = try #require(try Canned.json(Canned.differences)["differences"]?.arrayValue)
    #expect(
      Output.differenceTable(differences).text(withHeaders: true) == """
        BETWEEN             KIND           OBJECT
        agent and kernel    map ip pairs   missing: subject 3, identity 16
        objects and agent   policy         shop/deny-db
        """)
  }

  @Test("an answer without what was expected is shown, not a crash")
  func poor() {
    #expect(PolicyText.list([.null, [:], "x", [1]], wide: true).rows.count == 4)
    #expect(PolicyText.detail(.null, withHeaders: true).hasPrefix("Policy"))
  }
}

@Suite("dpctl identity")
struct IdentityTests {
  @Test("lists identities; addresses of the world are counted in ranges, groups of labels are cut")
  func list() throws {
    let items = try Canned.items(Canned.identities)
    #expect(
      IdentityList.table(items, wide: false).text(withHeaders: true).split(separator: "\n").map { line in
        String(line.reversed().drop { $0 == " " }.reversed())
      } == [
        "ID   FAMILY   KIND      NAMESPACE   ADDRESSES   PAIRS   LABELS",
        "16   IPv4     pod       shop        2           3       app=api,tier=x",
        "17   IPv6     pod       shop        4           1       app=api; <none>; +2",
        "18   IPv4     pod       other       1           0",
        "20   IPv4     node                  3           0",
        "22   IPv4     world                 4 ranges    2",
        "25   IPv6     unknown               1 range     0",
      ])
    let wide = IdentityList.table(items, wide: true)
    #expect(wide.rows[1].last == "app=api; <none>; app=cart; app=db")
  }

  @Test("one namespace's identities are the others left out of the answer")
  func namespace() throws {
    let answer = try Canned.json(Canned.identities)
    #expect(IdentityList.only(nil, of: answer) == answer)
    let shop = IdentityList.only("shop", of: answer)
    #expect(shop["apiVersion"] == "sluice.dev/v1")
    #expect(shop["items"]?.arrayValue?.map { $0.number("id") } == [16, 17])
    #expect(IdentityList.only("none", of: answer)["items"] == [])
  }
}
